//! A program on a machine that does what it is told, call by call.
//!
//! It is a Python interpreter: each line is an expression or a statement, and the answer is the
//! value's repr or the name of the errno. So a test decides the order of system calls on several
//! machines, and sees when one of them waits.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use crate::Playground;

/// How long a call may take that does not wait for anything.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(120);
/// A call that has not answered after so long is taken to wait.
const WAITS_AFTER: Duration = Duration::from_millis(400);

const PROGRAM: &str = r#"
import ctypes, ctypes.util, errno, fcntl, hashlib, mmap, os, signal, socket, stat, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    result = getattr(libc, name)(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), '')
    return result
def lock(fd, kind, start=0, length=0, wait=False, ofd=False):
    kind = {'r': fcntl.F_RDLCK, 'w': fcntl.F_WRLCK, 'u': fcntl.F_UNLCK}[kind]
    command = {(0, 0): fcntl.F_SETLK, (1, 0): fcntl.F_SETLKW, (0, 1): 37, (1, 1): 38}[wait, ofd]
    fcntl.fcntl(fd, command, struct.pack('hhqqi4x', kind, os.SEEK_SET, start, length, 0))
def conflict(fd, kind, start=0, length=0):
    kind = {'r': fcntl.F_RDLCK, 'w': fcntl.F_WRLCK}[kind]
    asked = struct.pack('hhqqi4x', kind, os.SEEK_SET, start, length, 0)
    kind, _, start, length, _ = struct.unpack('hhqqi4x', fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else ('r' if kind == fcntl.F_RDLCK else 'w', start, length)
def read(path):
    with open(path, 'rb') as file:
        return file.read()
def write(path, content, mode='wb'):
    with open(path, mode) as file:
        file.write(content)
def fallocate(fd, mode, offset, length):
    call('fallocate', fd, mode, ctypes.c_long(offset), ctypes.c_long(length))
def copy_range(source, at, target, to, length):
    # The kernel goes by the size that it knows.
    os.fstat(source)
    return os.copy_file_range(source, target, length, at, to)
def copy(source, at, target, to, length):
    with open(source, 'rb') as source, open(target, 'r+b') as target:
        return copy_range(source.fileno(), at, target.fileno(), to, length)
def copy_all(source, target):
    done = 0
    with open(source, 'rb') as source, open(target, 'wb') as target:
        while count := os.copy_file_range(source.fileno(), target.fileno(), 1 << 30):
            done += count
    return done
def as_user(uid, work, gid=None, groups=()):
    os.setgroups(groups)
    os.setegid(uid if gid is None else gid)
    os.seteuid(uid)
    try:
        return work()
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups([])
def rename(old, new, flags):
    call('renameat2', -100, old.encode(), -100, new.encode(), flags)
class Alarm(Exception):
    pass
def alarmed(*_):
    raise Alarm
def within(seconds, work, number=signal.SIGALRM):
    before = signal.signal(number, alarmed)
    sender = os.fork()
    if sender == 0:
        time.sleep(seconds)
        os.kill(os.getppid(), number)
        os._exit(0)
    try:
        return work()
    except Alarm:
        return 'interrupted'
    finally:
        os.kill(sender, signal.SIGKILL)
        os.waitpid(sender, 0)
        signal.signal(number, before)
ticks = []
def tick(*_):
    ticks.append(None)
def ticking(period):
    signal.signal(signal.SIGALRM, tick)
    signal.setitimer(signal.ITIMER_REAL, period, period)
scope = dict(globals())
scope["scope"] = scope
print(os.getpid(), flush=True)
for line in sys.stdin:
    try:
        try:
            code = compile(line.strip(), 'line', 'eval')
        except SyntaxError:
            exec(line.strip(), scope)
            answer = None
        else:
            answer = eval(code, scope)
        print('ok' if answer is None else repr(answer), flush=True)
    except OSError as error:
        print(errno.errorcode.get(error.errno, error.errno), flush=True)
    except BaseException as error:
        print(repr(error), flush=True)
"#;

/// What came of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Came(String),
    /// The call has not returned yet.
    Waits,
    /// The program, or its machine, is no more.
    Gone,
}

#[derive(Debug)]
pub struct Actor {
    child: Child,
    commands: Option<ChildStdin>,
    answers: Receiver<String>,
    machine: String,
    /// As its machine sees it.
    pub pid: u32,
}

/// Why this machine cannot mount files, if it cannot. Printed in the form that is counted.
pub fn cannot_run_files() -> bool {
    if crate::cannot_run() {
        return true;
    }
    let fuse = std::path::Path::new("/dev/fuse").exists();
    if !fuse {
        println!("skipped: there is no /dev/fuse");
    }
    !fuse
}

/// One on each of these machines.
pub fn actors<const N: usize>(playground: &Playground, machines: [&str; N]) -> [Actor; N] {
    machines.map(|machine| Actor::on(playground, machine))
}

impl Actor {
    pub fn on(playground: &Playground, machine: &str) -> Self {
        let mut command = playground.on(machine, &["python3", "-c", PROGRAM]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("an actor starts");
        let commands = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let (tell, answers) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        let mut actor = Self { child, commands, answers, machine: machine.into(), pid: 0 };
        actor.pid = actor.answer().parse().expect("a PID");
        actor
    }

    /// Starts a call.
    pub fn tell(&mut self, line: &str) {
        let commands = self.commands.as_mut().expect("the actor is there");
        // An actor whose machine was cut does not listen; its answer tells.
        let _ = writeln!(commands, "{line}").and_then(|()| commands.flush());
    }

    /// The answer of the call that was started last; it must come.
    pub fn answer(&mut self) -> String {
        match self.answers.recv_timeout(ANSWER_TIME_MAX) {
            Ok(answer) => answer,
            Err(why) => panic!("no answer from the actor on {}: {why}", self.machine),
        }
    }

    /// The answer, or that there is none yet.
    pub fn look(&mut self) -> Answer {
        match self.answers.recv_timeout(WAITS_AFTER) {
            Ok(answer) => Answer::Came(answer),
            Err(RecvTimeoutError::Timeout) => Answer::Waits,
            Err(RecvTimeoutError::Disconnected) => Answer::Gone,
        }
    }

    /// A call and its answer.
    pub fn call(&mut self, line: &str) -> String {
        self.tell(line);
        self.answer()
    }

    /// A call that must answer this.
    #[track_caller]
    pub fn expect(&mut self, line: &str, answer: &str) {
        assert_eq!(self.call(line), answer, "{}: {line}", self.machine);
    }

    /// Calls that must succeed without a value.
    #[track_caller]
    pub fn run(&mut self, lines: &[&str]) {
        for line in lines {
            self.expect(line, "ok");
        }
    }

    /// A call that must wait.
    #[track_caller]
    pub fn waits(&mut self, line: &str) {
        self.tell(line);
        assert_eq!(self.look(), Answer::Waits, "{}: {line}", self.machine);
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        // Its input ends, and so does it; what waits in a call is killed.
        self.commands.take();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
