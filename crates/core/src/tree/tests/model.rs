//! Random namespace commands against a model that is simple enough to be believed: it counts names
//! and looks for ways up and down each time, instead of keeping anything.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Create(u64, usize, Kind),
    Link(u64, u64, usize),
    Unlink(u64, usize),
    Rmdir(u64, usize),
    Rename(u64, usize, u64, usize, u32),
}

const NAMES: [&str; 3] = ["a", "b", "c"];

fn op() -> impl Strategy<Value = Op> {
    let ino = || 1..14_u64;
    let name = || 0..NAMES.len();
    let kind = prop_oneof![Just(Kind::Directory), Just(Kind::Directory), Just(Kind::Regular)];
    prop_oneof![
        4 => (ino(), name(), kind).prop_map(|(p, n, k)| Op::Create(p, n, k)),
        1 => (ino(), ino(), name()).prop_map(|(i, p, n)| Op::Link(i, p, n)),
        1 => (ino(), name()).prop_map(|(p, n)| Op::Unlink(p, n)),
        1 => (ino(), name()).prop_map(|(p, n)| Op::Rmdir(p, n)),
        4 => (ino(), name(), ino(), name(), 0..3_u32)
            .prop_map(|(p, n, q, m, f)| Op::Rename(p, n, q, m, f)),
    ]
}

/// Names of directories; None for what is no directory. Index = inode number.
struct Model {
    inodes: Vec<Option<BTreeMap<&'static str, u64>>>,
}

impl Model {
    fn new() -> Self {
        Self { inodes: vec![None, Some(BTreeMap::new())] }
    }

    fn is_dir(&self, ino: u64) -> bool {
        self.inodes.get(ino as usize).is_some_and(Option::is_some)
    }

    fn names_of(&self, ino: u64) -> usize {
        self.inodes.iter().flatten().flat_map(|d| d.values()).filter(|&&i| i == ino).count()
    }

    fn dir(&self, ino: u64) -> Result<&BTreeMap<&'static str, u64>, TreeError> {
        if ino as usize >= self.inodes.len() {
            return Err(TreeError::Stale);
        }
        let dir = self.inodes[ino as usize].as_ref().ok_or(TreeError::NotDirectory)?;
        if ino != 1 && self.names_of(ino) == 0 { Err(TreeError::NotFound) } else { Ok(dir) }
    }

    fn dir_mut(&mut self, ino: u64) -> &mut BTreeMap<&'static str, u64> {
        self.inodes[ino as usize].as_mut().expect("a directory")
    }

    fn get(&self, parent: u64, name: &str) -> Result<u64, TreeError> {
        self.dir(parent)?.get(name).copied().ok_or(TreeError::NotFound)
    }

    /// Whether `below` can be reached from `above` going down.
    fn reaches(&self, above: u64, below: u64) -> bool {
        above == below
            || self.inodes[above as usize]
                .iter()
                .flat_map(|d| d.values())
                .any(|&child| self.reaches(child, below))
    }

    fn apply(&mut self, op: &Op) -> Result<(), TreeError> {
        match *op {
            Op::Create(parent, name, kind) => {
                if self.dir(parent)?.contains_key(NAMES[name]) {
                    return Err(TreeError::Exists);
                }
                let ino = self.inodes.len() as u64;
                self.inodes.push((kind == Kind::Directory).then(BTreeMap::new));
                self.dir_mut(parent).insert(NAMES[name], ino);
            }
            Op::Link(ino, parent, name) => {
                if ino as usize >= self.inodes.len() {
                    return Err(TreeError::Stale);
                }
                if self.is_dir(ino) {
                    return Err(TreeError::NotPermitted);
                }
                if self.names_of(ino) == 0 {
                    return Err(TreeError::NotFound);
                }
                if self.dir(parent)?.contains_key(NAMES[name]) {
                    return Err(TreeError::Exists);
                }
                self.dir_mut(parent).insert(NAMES[name], ino);
            }
            Op::Unlink(parent, name) => {
                let ino = self.get(parent, NAMES[name])?;
                if self.is_dir(ino) {
                    return Err(TreeError::IsDirectory);
                }
                self.dir_mut(parent).remove(NAMES[name]);
            }
            Op::Rmdir(parent, name) => {
                let ino = self.get(parent, NAMES[name])?;
                match &self.inodes[ino as usize] {
                    None => return Err(TreeError::NotDirectory),
                    Some(dir) if !dir.is_empty() => return Err(TreeError::NotEmpty),
                    Some(_) => {}
                }
                self.dir_mut(parent).remove(NAMES[name]);
            }
            Op::Rename(from, name, to, new_name, flags) => {
                return self.rename(from, NAMES[name], to, NAMES[new_name], flags);
            }
        }
        Ok(())
    }

    fn rename(
        &mut self,
        from: u64,
        name: &'static str,
        to: u64,
        new_name: &'static str,
        flags: u32,
    ) -> Result<(), TreeError> {
        let source = self.get(from, name)?;
        let target = self.dir(to)?.get(new_name).copied();
        if flags == 1 && target.is_some() {
            return Err(TreeError::Exists);
        }
        if self.is_dir(source) && self.reaches(source, to) {
            return Err(TreeError::CrossesItself);
        }
        if flags == 2 {
            let target = target.ok_or(TreeError::NotFound)?;
            if target != source && self.is_dir(target) && self.reaches(target, from) {
                return Err(TreeError::CrossesItself);
            }
            self.dir_mut(from).insert(name, target);
            self.dir_mut(to).insert(new_name, source);
            return Ok(());
        }
        if let Some(target) = target {
            if target == source {
                return Ok(());
            }
            if self.inodes[target as usize].as_ref().is_some_and(|dir| !dir.is_empty()) {
                return Err(TreeError::NotEmpty);
            }
            if self.is_dir(source) != self.is_dir(target) {
                let is_dir = self.is_dir(target);
                return Err(if is_dir { TreeError::IsDirectory } else { TreeError::NotDirectory });
            }
        }
        self.dir_mut(from).remove(name);
        self.dir_mut(to).insert(new_name, source);
        Ok(())
    }
}

fn apply(world: &mut World, op: &Op) -> Result<(), TreeError> {
    let done = match *op {
        Op::Create(parent, name, kind) => {
            return world.create(Ino(parent), NAMES[name], kind).map(|_| ());
        }
        Op::Link(ino, parent, name) => link(Ino(ino), Ino(parent), NAMES[name]),
        Op::Unlink(parent, name) => unlink(Ino(parent), NAMES[name]),
        Op::Rmdir(parent, name) => rmdir(Ino(parent), NAMES[name]),
        Op::Rename(from, name, to, new_name, flags) => {
            rename((Ino(from), NAMES[name]), (Ino(to), NAMES[new_name]), flags)
        }
    };
    world.run(done).map(|_| ())
}

fn listing(tree: &Tree, ino: u64) -> BTreeMap<String, u64> {
    let listed = tree.read_directory(Ino(ino), COOKIE_PARENT);
    let listed = listed.into_iter().flatten();
    listed.map(|l| (String::from_utf8_lossy(&l.name).into_owned(), l.ino.0)).collect()
}

proptest! {
    #![proptest_config(property(600))]

    #[test]
    fn names_are_as_the_model_has_them(ops in vec(op(), 1..60)) {
        let mut world = World::new();
        let mut model = Model::new();
        for op in &ops {
            prop_assert_eq!(apply(&mut world, op), model.apply(op), "{:?}", op);
            for ino in 1..model.inodes.len() as u64 {
                let expected = model.dir(ino).ok().into_iter().flatten();
                let expected: BTreeMap<String, u64> =
                    expected.map(|(&name, &ino)| (name.to_owned(), ino)).collect();
                prop_assert_eq!(listing(&world.tree, ino), expected, "directory {}", ino);
            }
        }
    }
}
