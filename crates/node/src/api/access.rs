//! Who may do what over the local socket. Every local user may look; changing the cluster takes
//! root, or membership in the administrators' group that the settings name.

use unum_net::{Caller, Status};

/// Who may change the cluster.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// The group's name and its id here; a name without an id is a group that does not exist.
    group: Option<(String, Option<u32>)>,
}

impl Access {
    /// Looks the group up in `/etc/group`.
    pub fn new(group: Option<&str>) -> Self {
        let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
        Self { group: group.map(|name| (name.to_string(), group_id(&groups, name))) }
    }

    /// `what` is the rest of the sentence "you may not ...".
    pub fn require_admin(&self, caller: &Caller, what: &str) -> Result<(), Status> {
        if caller.uid == 0 || self.in_group(caller) {
            return Ok(());
        }
        let who = match &self.group {
            Some((name, Some(_))) => format!("root or a member of the group `{name}`"),
            Some((name, None)) => format!("root (the group `{name}` does not exist here)"),
            None => "root".into(),
        };
        Err(Status::denied(format!(
            "user {} may not {what}: only {who} may; try again with sudo",
            caller.uid
        )))
    }

    /// For what root alone may do to files. `what` as above.
    pub fn require_root(&self, caller: &Caller, what: &str) -> Result<(), Status> {
        match caller.uid {
            0 => Ok(()),
            uid => Err(Status::denied(format!(
                "user {uid} may not {what}: only root may; try again with sudo"
            ))),
        }
    }

    fn in_group(&self, caller: &Caller) -> bool {
        let Some((_, Some(group))) = &self.group else { return false };
        caller.gid == *group || caller.groups.contains(group)
    }
}

fn group_id(groups: &str, name: &str) -> Option<u32> {
    let line = groups.lines().find(|line| line.split(':').next() == Some(name))?;
    line.split(':').nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_group_may() {
        let access =
            Access { group: Some(("ops".into(), group_id("root:x:0:\nops:x:27:ann\n", "ops"))) };
        let user = |uid, groups: &[u32]| Caller {
            uid,
            gid: uid,
            groups: groups.to_vec(),
            ..Caller::default()
        };
        assert!(access.require_admin(&user(0, &[]), "leave").is_ok());
        assert!(access.require_admin(&user(1000, &[27]), "leave").is_ok());
        let denied = access.require_admin(&user(1000, &[28]), "remove a node").unwrap_err();
        assert_eq!(
            denied.message,
            "user 1000 may not remove a node: only root or a member of the group `ops` may; \
             try again with sudo"
        );
        assert!(access.require_root(&user(0, &[]), "set it").is_ok());
        assert!(access.require_root(&user(1000, &[27]), "set it").is_err());
        let nobody = Access { group: Some(("nosuch".into(), None)) };
        assert!(nobody.require_admin(&user(1000, &[0]), "x").is_err());
    }
}
