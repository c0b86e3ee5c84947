//! A file tree in memory, and random calls on several machines whose answers it foretells: one call at a
//! time, each on any machine, so every answer must show all calls before it.

use std::collections::BTreeMap;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::actor::Actor;

/// Few names in few directories, so that calls meet.
const NAMES: [&str; 4] = ["a", "b", "c", "d"];
/// Beyond some pages, so that some are left alone by a change.
const SIZE_MAX: usize = 10_000;
/// Open files of each actor.
const OPEN_MAX: usize = 3;

type Id = u64;
const ROOT: Id = 0;

enum Node {
    File { content: Vec<u8>, mode: u32, names: u32 },
    Directory { entries: BTreeMap<&'static str, Id> },
}

/// What the tree must be.
pub struct Model {
    root: String,
    /// Who made the last call.
    at: usize,
    stay: f64,
    nodes: BTreeMap<Id, Node>,
    next: Id,
    /// Of each actor: what its descriptors f0, f1, ... are open on.
    open: Vec<[Option<Id>; OPEN_MAX]>,
}

type Path = Vec<&'static str>;
type Expected<T> = Result<T, &'static str>;

/// A call, and the answer that must come.
struct Step {
    line: String,
    answer: String,
}

impl Model {
    /// Of the directory `root`, which is empty. `stay`: how likely a call is made by the machine that made
    /// the one before; machines that are at work for long get write leases.
    pub fn new(root: &str, actors: usize, stay: f64) -> Self {
        let nodes = BTreeMap::from([(ROOT, Node::Directory { entries: BTreeMap::new() })]);
        Self {
            root: root.into(),
            nodes,
            next: 1,
            open: vec![[None; OPEN_MAX]; actors],
            at: 0,
            stay,
        }
    }

    /// One random call on one random machine. Returns what was done; panics on a wrong answer.
    pub fn step(&mut self, rng: &mut StdRng, actors: &mut [Actor]) -> String {
        if !rng.random_bool(self.stay) {
            self.at = rng.random_range(0..actors.len());
        }
        let at = self.at;
        let step = self.draw(rng, at);
        let mut answer = actors[at].call(&step.line);
        if answer == "ESTALE" && step.line.starts_with("os.rename") {
            // Linux cannot look up, in the midst of a rename, a directory that it still knows under
            // the name from which another machine moved it (d_splice_alias). A look at it helps.
            let paths = step.line.trim_start_matches("os.rename");
            actors[at].call(&format!("[os.path.exists(path) for path in {paths}]"));
            answer = actors[at].call(&step.line);
        }
        let done = format!("{at}: {} -> {}", shortened(&step.line), shortened(&answer));
        assert!(answer == step.answer, "{done}\nmust be {}", shortened(&step.answer));
        done
    }

    fn draw(&mut self, rng: &mut StdRng, actor: usize) -> Step {
        let path = draw_path(rng);
        match rng.random_range(0..31) {
            0..3 => self.create(&path, &letters(rng)),
            3 => self.mkdir(&path),
            4 => self.rmdir(&path),
            5..7 => self.unlink(&path),
            7 => self.rename(&path, &draw_path(rng)),
            8 => self.link(&path, &draw_path(rng)),
            9..12 => {
                let back = rng.random_bool(0.3);
                self.write(&path, rng.random_range(0..SIZE_MAX / 2), &letters(rng), back)
            }
            12 => self.truncate(&path, rng.random_range(0..SIZE_MAX)),
            13 => self.chmod(&path, *[0o600, 0o644, 0o755].choose(rng).unwrap_or(&0o600)),
            14..18 => self.stat(&path),
            18..21 => self.list(&path),
            21..23 => self.read(&path, "read({})"),
            23 => self.read(
                &path,
                "(lambda f: bytes(mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)) \
                 if os.fstat(f.fileno()).st_size else b'')(open({}, 'rb'))",
            ),
            24 => self.open(actor, rng.random_range(0..OPEN_MAX), &path),
            28..30 => {
                let at = [0; 2].map(|_| rng.random_range(0..SIZE_MAX / 2));
                self.copy(&path, &draw_path(rng), at, rng.random_range(1..SIZE_MAX / 2))
            }
            30 => {
                let slots = [0; 2].map(|_| rng.random_range(0..OPEN_MAX));
                let at = [0; 2].map(|_| rng.random_range(0..SIZE_MAX / 2));
                self.copy_open(actor, slots, at, rng.random_range(1..SIZE_MAX / 2))
            }
            _ => {
                let slot = rng.random_range(0..OPEN_MAX);
                match rng.random_range(0..5) {
                    0 => self.write_open(actor, slot, rng.random_range(0..SIZE_MAX / 2), rng),
                    1 => self.close(actor, slot),
                    _ => self.look_at_open(actor, slot),
                }
            }
        }
    }

    fn shown(&self, path: &Path) -> String {
        let parts: Vec<&str> =
            std::iter::once(self.root.as_str()).chain(path.iter().copied()).collect();
        format!("'{}'", parts.join("/"))
    }

    // The model.

    fn entries(&self, id: Id) -> Expected<&BTreeMap<&'static str, Id>> {
        match &self.nodes[&id] {
            Node::Directory { entries } => Ok(entries),
            Node::File { .. } => Err("ENOTDIR"),
        }
    }

    fn find(&self, path: &[&'static str]) -> Expected<Id> {
        path.iter().try_fold(ROOT, |at, name| self.entries(at)?.get(name).copied().ok_or("ENOENT"))
    }

    fn parent(&self, path: &Path) -> Expected<(Id, &'static str)> {
        let (name, above) = path.split_last().ok_or("EINVAL")?;
        let parent = self.find(above)?;
        self.entries(parent)?;
        Ok((parent, name))
    }

    fn file(&mut self, path: &Path) -> Expected<&mut Vec<u8>> {
        let id = self.find(path)?;
        self.content(id).ok_or("EISDIR")
    }

    fn content(&mut self, id: Id) -> Option<&mut Vec<u8>> {
        match self.nodes.get_mut(&id)? {
            Node::File { content, .. } => Some(content),
            Node::Directory { .. } => None,
        }
    }

    fn is_directory(&self, id: Id) -> bool {
        matches!(self.nodes[&id], Node::Directory { .. })
    }

    fn set(&mut self, (parent, name): (Id, &'static str), id: Option<Id>) {
        let Some(Node::Directory { entries }) = self.nodes.get_mut(&parent) else { return };
        match id {
            Some(id) => entries.insert(name, id),
            None => entries.remove(name),
        };
    }

    fn add(&mut self, place: (Id, &'static str), node: Node) {
        self.nodes.insert(self.next, node);
        self.set(place, Some(self.next));
        self.next += 1;
    }

    fn count(&mut self, id: Id, change: i32) {
        if let Some(Node::File { names, .. }) = self.nodes.get_mut(&id) {
            *names = names.saturating_add_signed(change);
        }
    }

    // The calls.

    fn create(&mut self, path: &Path, content: &[u8]) -> Step {
        let line = format!("write({}, {}, 'xb')", self.shown(path), quoted(content));
        let done = self.parent(path).and_then(|place| match self.find(path) {
            Ok(_) => Err("EEXIST"),
            Err(_) => Ok(place),
        });
        let done = done.map(|place| {
            self.add(place, Node::File { content: content.to_vec(), mode: 0o644, names: 1 });
        });
        step(line, done)
    }

    fn mkdir(&mut self, path: &Path) -> Step {
        let line = format!("os.mkdir({})", self.shown(path));
        let done = self.parent(path).and_then(|place| match self.find(path) {
            Ok(_) => Err("EEXIST"),
            Err(_) => Ok(place),
        });
        step(line, done.map(|place| self.add(place, Node::Directory { entries: BTreeMap::new() })))
    }

    fn rmdir(&mut self, path: &Path) -> Step {
        let line = format!("os.rmdir({})", self.shown(path));
        let done = self.parent(path).and_then(|place| {
            let id = self.find(path)?;
            if self.entries(id)?.is_empty() { Ok(place) } else { Err("ENOTEMPTY") }
        });
        step(line, done.map(|place| self.set(place, None)))
    }

    fn unlink(&mut self, path: &Path) -> Step {
        let line = format!("os.unlink({})", self.shown(path));
        let done = self.parent(path).and_then(|place| {
            let id = self.find(path)?;
            if self.is_directory(id) { Err("EISDIR") } else { Ok((place, id)) }
        });
        step(
            line,
            done.map(|(place, id)| {
                self.set(place, None);
                self.count(id, -1);
            }),
        )
    }

    fn rename(&mut self, from: &Path, to: &Path) -> Step {
        let line = format!("os.rename({}, {})", self.shown(from), self.shown(to));
        step(line, self.renamed(from, to))
    }

    fn renamed(&mut self, from: &Path, to: &Path) -> Expected<()> {
        let (source, target) = (self.parent(from)?, self.parent(to)?);
        let id = self.find(from)?;
        if self.is_directory(id) && to.len() > from.len() && to.starts_with(from) {
            return Err("EINVAL");
        }
        // The other way round the target has something in it, namely the source.
        if from.len() > to.len() && from.starts_with(to) {
            return Err("ENOTEMPTY");
        }
        if let Ok(old) = self.find(to) {
            if old == id {
                return Ok(());
            }
            match (self.is_directory(id), self.is_directory(old)) {
                (true, false) => return Err("ENOTDIR"),
                (false, true) => return Err("EISDIR"),
                (true, true) if !self.entries(old)?.is_empty() => return Err("ENOTEMPTY"),
                _ => self.count(old, -1),
            }
        }
        self.set(source, None);
        self.set(target, Some(id));
        Ok(())
    }

    fn link(&mut self, from: &Path, to: &Path) -> Step {
        let line = format!("os.link({}, {})", self.shown(from), self.shown(to));
        let done = self.find(from).and_then(|id| {
            let place = self.parent(to)?;
            match (self.find(to), self.is_directory(id)) {
                (Ok(_), _) => Err("EEXIST"),
                (Err(_), true) => Err("EPERM"),
                (Err(_), false) => Ok((place, id)),
            }
        });
        step(
            line,
            done.map(|(place, id)| {
                self.set(place, Some(id));
                self.count(id, 1);
            }),
        )
    }

    /// `back`: with the time of the last change set back, as rsync and tar do.
    fn write(&mut self, path: &Path, at: usize, bytes: &[u8], back: bool) -> Step {
        let restore = match back {
            true => "os.utime(f, ns=(s.st_atime_ns, s.st_mtime_ns)),",
            false => "",
        };
        let line = format!(
            "(lambda f: (lambda s: (os.pwrite(f, {}, {at}), {restore} os.close(f)) and None)\
             (os.fstat(f)))(os.open({}, os.O_RDWR))",
            quoted(bytes),
            self.shown(path)
        );
        step(line, self.file(path).map(|content| put(content, at, bytes)))
    }

    fn copy(&mut self, from: &Path, to: &Path, at: [usize; 2], length: usize) -> Step {
        let (shown, onto) = (self.shown(from), self.shown(to));
        let line = format!("copy({shown}, {}, {onto}, {}, {length})", at[0], at[1]);
        let found = self.file(from).map(drop).and_then(|()| self.file(to).map(drop));
        let found = found.and_then(|()| Ok([self.find(from)?, self.find(to)?]));
        let answer = found.and_then(|files| self.copied(files, at, length));
        Step { line, answer: answer.map_or_else(str::to_owned, |n| n.to_string()) }
    }

    fn copy_open(
        &mut self,
        actor: usize,
        slots: [usize; 2],
        at: [usize; 2],
        length: usize,
    ) -> Step {
        let [Some(from), Some(to)] = slots.map(|slot| self.open[actor][slot]) else {
            return step("None".into(), Ok(()));
        };
        let line =
            format!("copy_range(f{}, {}, f{}, {}, {length})", slots[0], at[0], slots[1], at[1]);
        let answer = self.copied([from, to], at, length);
        Step { line, answer: answer.map_or_else(str::to_owned, |n| n.to_string()) }
    }

    fn copied(&mut self, files: [Id; 2], at: [usize; 2], length: usize) -> Expected<usize> {
        let source = self.content(files[0]).ok_or("EISDIR")?;
        let start = at[0].min(source.len());
        let bytes = source[start..(at[0] + length).clamp(start, source.len())].to_vec();
        if files[0] == files[1] && at[0].abs_diff(at[1]) < bytes.len() {
            return Err("EINVAL");
        }
        if !bytes.is_empty() {
            put(self.content(files[1]).ok_or("EISDIR")?, at[1], &bytes);
        }
        Ok(bytes.len())
    }

    fn truncate(&mut self, path: &Path, size: usize) -> Step {
        let line = format!("os.truncate({}, {size})", self.shown(path));
        step(line, self.file(path).map(|content| content.resize(size, 0)))
    }

    fn chmod(&mut self, path: &Path, new: u32) -> Step {
        // Directories keep theirs, so that everybody may go on.
        let line =
            format!("os.stat({0}).st_mode & 0o40000 or os.chmod({0}, {new})", self.shown(path));
        let found = self.find(path);
        let answer = found.map(|id| match self.nodes.get_mut(&id) {
            Some(Node::File { mode, .. }) => {
                *mode = new;
                "ok"
            }
            _ => "16384",
        });
        Step { line, answer: answer.unwrap_or_else(|errno| errno).into() }
    }

    fn stat(&self, path: &Path) -> Step {
        let line = format!(
            "(lambda s: (stat.S_ISREG(s.st_mode), s.st_size, s.st_nlink, s.st_mode & 0o777))(os.stat({}))",
            self.shown(path)
        );
        let answer = self.find(path).map(|id| match &self.nodes[&id] {
            Node::File { content, mode, names } => {
                format!("(True, {}, {names}, {mode})", content.len())
            }
            Node::Directory { entries } => {
                let below = entries.values().filter(|id| self.is_directory(**id)).count();
                format!("(False, {}, {}, {})", entries.len(), below + 2, 0o755)
            }
        });
        Step { line, answer: answer.unwrap_or_else(str::to_owned) }
    }

    fn list(&self, path: &Path) -> Step {
        let above = &path[..path.len() - 1].to_vec();
        let line = format!("sorted(os.listdir({}))", self.shown(above));
        let names = self.find(above).and_then(|id| self.entries(id));
        let answer = names.map(|names| {
            let quoted: Vec<String> = names.keys().map(|name| format!("'{name}'")).collect();
            format!("[{}]", quoted.join(", "))
        });
        Step { line, answer: answer.unwrap_or_else(str::to_owned) }
    }

    fn read(&mut self, path: &Path, how: &str) -> Step {
        let line = how.replace("{}", &self.shown(path));
        let answer = self.file(path).map(|content| quoted(content));
        Step { line, answer: answer.unwrap_or_else(str::to_owned) }
    }

    fn open(&mut self, actor: usize, slot: usize, path: &Path) -> Step {
        if self.open[actor][slot].is_some() {
            return self.close(actor, slot);
        }
        let line = format!("f{slot} = os.open({}, os.O_RDWR)", self.shown(path));
        let found = self.find(path).and_then(|id| match self.is_directory(id) {
            true => Err("EISDIR"),
            false => Ok(id),
        });
        step(line, found.map(|id| self.open[actor][slot] = Some(id)))
    }

    fn close(&mut self, actor: usize, slot: usize) -> Step {
        match self.open[actor][slot].take() {
            Some(_) => step(format!("os.close(f{slot})"), Ok(())),
            None => step("None".into(), Ok(())),
        }
    }

    fn look_at_open(&mut self, actor: usize, slot: usize) -> Step {
        let Some(id) = self.open[actor][slot] else { return step("None".into(), Ok(())) };
        let line = format!(
            "(os.fstat(f{slot}).st_nlink, os.fstat(f{slot}).st_size, os.pread(f{slot}, {}, 0))",
            2 * SIZE_MAX
        );
        let Node::File { content, names, .. } = &self.nodes[&id] else { unreachable!() };
        Step { line, answer: format!("({names}, {}, {})", content.len(), quoted(content)) }
    }

    fn write_open(&mut self, actor: usize, slot: usize, at: usize, rng: &mut StdRng) -> Step {
        let Some(id) = self.open[actor][slot] else { return step("None".into(), Ok(())) };
        let bytes = letters(rng);
        if let Some(content) = self.content(id) {
            put(content, at, &bytes);
        }
        let line = format!("os.pwrite(f{slot}, {}, {at}) and None", quoted(&bytes));
        step(line, Ok(()))
    }
}

fn step(line: String, done: Expected<()>) -> Step {
    Step { line, answer: done.err().unwrap_or("ok").into() }
}

fn draw_path(rng: &mut StdRng) -> Path {
    let depth = rng.random_range(1..=2);
    (0..depth).map(|_| NAMES[rng.random_range(0..NAMES.len())]).collect()
}

/// Some bytes, at least one.
fn letters(rng: &mut StdRng) -> Vec<u8> {
    let length = *[1, 10, 200, 4096, 5000].choose(rng).unwrap_or(&1);
    vec![rng.random_range(b'a'..=b'z'); length]
}

fn put(content: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = at + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[at..end].copy_from_slice(bytes);
}

/// As Python shows bytes.
fn quoted(bytes: &[u8]) -> String {
    let shown = |byte: &u8| match byte {
        0 => "\\x00".to_owned(),
        letter => char::from(*letter).to_string(),
    };
    format!("b'{}'", bytes.iter().map(shown).collect::<String>())
}

fn shortened(text: &str) -> String {
    let mut runs = String::new();
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        let mut count = 1;
        while chars.next_if_eq(&char).is_some() {
            count += 1;
        }
        runs.push(char);
        if count > 3 {
            runs.push_str(&format!("*{count}"));
        } else {
            runs.extend(std::iter::repeat_n(char, count - 1));
        }
    }
    runs
}
