//! Who a user is, from /etc/passwd and /etc/group.

use crate::failure::{Explain, Failure, Result};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
    pub shell: String,
}

/// Looks a user up by name or number.
pub fn find(wanted: &str) -> Result<User> {
    let read = |path: &str| std::fs::read_to_string(path).explain(|| format!("cannot read {path}"));
    find_in(wanted, &read("/etc/passwd")?, &read("/etc/group")?).ok_or_else(|| {
        Failure::usage(format!("there is no user {wanted}"))
            .next("See /etc/passwd for those there are.")
    })
}

fn find_in(wanted: &str, passwd: &str, group: &str) -> Option<User> {
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, shell] = fields[..] else { return None };
        if name != wanted && uid != wanted {
            return None;
        }
        let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
        let groups = groups_of(name, gid, group);
        Some(User { name: name.into(), uid, gid, groups, home: home.into(), shell: shell.into() })
    })
}

fn groups_of(name: &str, first: u32, group: &str) -> Vec<u32> {
    let mut groups = vec![first];
    for line in group.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        let [_, _, gid, members] = fields[..] else { continue };
        if let Ok(gid) = gid.parse()
            && gid != first
            && members.split(',').any(|member| member == name)
        {
            groups.push(gid);
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_name_and_by_number_with_all_groups() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nbroken\neva:x:1001:100::/home/eva:/bin/sh\n";
        let group = "root:x:0:\nusers:x:100:eva\nvideo:x:44:adam,eva\nbad:x:nn:eva\n";
        let eva = find_in("eva", passwd, group).expect("she is there");
        assert_eq!((eva.uid, eva.gid, eva.groups.as_slice()), (1001, 100, &[100, 44][..]));
        assert_eq!(find_in("1001", passwd, group), Some(eva));
        assert_eq!(find_in("nobody", passwd, group), None);
    }
}
