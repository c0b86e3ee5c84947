//! unum-init's ends of a program's pipes, terminal or log, and the bytes in between.
//!
//! Invariants: nothing here blocks; the program is read only while there is room for its bytes (that is
//! the back-pressure it feels); a descriptor that would only report its hang-up again and again is not
//! waited for.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use unum_proto::init::{Stdio, Stream};
use unum_sys::{process, pty};

use crate::logfile::Logfile;
use crate::poll::{EventFlags, Poll, Watched};
use crate::stream::{Input, Output};

/// One read from a program, in bytes.
const READ_SIZE: usize = 64 << 10;

/// What is taken of a terminal's output beyond the buffer when its session ends, in bytes; the kernel
/// holds less than this.
const LAST_WORDS_MAX: usize = 128 << 10;

type Fd = Watched<OwnedFd>;

enum Ends {
    Closed,
    Pipes {
        stdin: Option<Fd>,
        stdout: Option<Fd>,
        stderr: Option<Fd>,
    },
    /// `asleep`: nobody has the slave open, though the program lives; looked at again now and then.
    Terminal {
        master: Fd,
        asleep: bool,
    },
    Log {
        pipe: Fd,
        file: Logfile,
    },
}

/// What the program itself gets.
pub enum ChildEnds {
    Three([OwnedFd; 3]),
    Terminal(OwnedFd),
}

impl ChildEnds {
    pub fn as_stdio(&self) -> process::Stdio<'_> {
        match self {
            ChildEnds::Three([a, b, c]) => process::Stdio::Three([a.as_fd(), b.as_fd(), c.as_fd()]),
            ChildEnds::Terminal(slave) => process::Stdio::Terminal(slave.as_fd()),
        }
    }
}

pub struct Streams {
    ends: Ends,
    pub stdout: Output,
    pub stderr: Output,
    pub input: Input,
    log: Option<String>,
    /// The last byte written to a terminal ended a line: one end-of-file character is enough.
    at_line_start: bool,
    end_written: bool,
    ended: bool,
}

/// Makes both sides. `log` is where a log begins its life, owned by the given user.
pub fn open(
    stdio: &Stdio,
    poll: &mut Poll,
    log: &Path,
    (uid, gid): (u32, u32),
) -> io::Result<(Streams, ChildEnds)> {
    let (ends, child) = match stdio {
        Stdio::Null(_) => (Ends::Closed, ChildEnds::Three([null()?, null()?, null()?])),
        Stdio::Pipes(wanted) => {
            let (stdin, child_stdin) = input_pipe(poll, wanted.stdin)?;
            let (stdout, child_stdout) = output_pipe(poll, wanted.stdout)?;
            let (stderr, child_stderr) = output_pipe(poll, wanted.stderr)?;
            let child = ChildEnds::Three([child_stdin, child_stdout, child_stderr]);
            (Ends::Pipes { stdin, stdout, stderr }, child)
        }
        Stdio::Pty(size) => {
            let pty = pty::open(clamp(size.rows), clamp(size.cols))?;
            let ends = Ends::Terminal { master: poll.watch(pty.master), asleep: false };
            (ends, ChildEnds::Terminal(pty.slave))
        }
        Stdio::Log(_) => {
            let file = Logfile::create(log.to_owned(), uid, gid)?;
            let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            rustix::io::ioctl_fionbio(&read, true)?;
            let again = write.try_clone()?;
            (Ends::Log { pipe: poll.watch(read), file }, ChildEnds::Three([null()?, write, again]))
        }
    };
    Ok((Streams::new(ends), child))
}

fn clamp(n: u32) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}

fn null() -> io::Result<OwnedFd> {
    Ok(std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?.into())
}

fn input_pipe(poll: &mut Poll, wanted: bool) -> io::Result<(Option<Fd>, OwnedFd)> {
    if !wanted {
        return Ok((None, null()?));
    }
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&write, true)?;
    Ok((Some(poll.watch(write)), read))
}

fn output_pipe(poll: &mut Poll, wanted: bool) -> io::Result<(Option<Fd>, OwnedFd)> {
    if !wanted {
        return Ok((None, null()?));
    }
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    Ok((Some(poll.watch(read)), write))
}

impl Streams {
    fn new(ends: Ends) -> Self {
        let mut streams = Streams {
            ends,
            stdout: Output::default(),
            stderr: Output::default(),
            input: Input::default(),
            log: None,
            at_line_start: true,
            end_written: false,
            ended: false,
        };
        let (input, stdout, stderr) = match &streams.ends {
            Ends::Pipes { stdin, stdout, stderr } => {
                (stdin.is_some(), stdout.is_some(), stderr.is_some())
            }
            Ends::Terminal { .. } => (true, true, false),
            Ends::Closed | Ends::Log { .. } => (false, false, false),
        };
        if !input {
            streams.input.close();
        }
        if !stdout {
            streams.stdout.finish();
        }
        if !stderr {
            streams.stderr.finish();
        }
        streams
    }

    pub fn tokens(&self) -> Vec<u64> {
        match &self.ends {
            Ends::Closed => Vec::new(),
            Ends::Pipes { stdin, stdout, stderr } => {
                [stdin, stdout, stderr].into_iter().flatten().map(Watched::token).collect()
            }
            Ends::Terminal { master, .. } => vec![master.token()],
            Ends::Log { pipe, .. } => vec![pipe.token()],
        }
    }

    pub fn output(&mut self, stream: Stream) -> Option<&mut Output> {
        match stream {
            Stream::Stdin => None,
            Stream::Stdout => Some(&mut self.stdout),
            Stream::Stderr => Some(&mut self.stderr),
        }
    }

    pub fn terminal(&self) -> Option<&OwnedFd> {
        match &self.ends {
            Ends::Terminal { master, .. } => Some(master.get()),
            _ => None,
        }
    }

    /// Path of the log.
    pub fn log(&self) -> Option<&str> {
        self.log.as_deref()
    }

    /// Gives the log the name that belongs to its program.
    pub fn settle_log(&mut self, path: &Path) -> io::Result<()> {
        if let Ends::Log { file, .. } = &mut self.ends {
            file.settle(path.to_owned())?;
            self.log = Some(file.path().to_string_lossy().into_owned());
        }
        Ok(())
    }

    /// Moves what can be moved after an event on `token`.
    pub fn ready(&mut self, token: u64) {
        match &mut self.ends {
            Ends::Closed => {}
            Ends::Pipes { stdin, stdout, stderr } => {
                if stdin.as_ref().is_some_and(|fd| fd.token() == token) {
                    write_input(stdin, &mut self.input);
                }
                for (fd, output) in [(stdout, &mut self.stdout), (stderr, &mut self.stderr)] {
                    if fd.as_ref().is_some_and(|fd| fd.token() == token) {
                        read_output(fd, output);
                    }
                }
            }
            Ends::Terminal { .. } => {
                self.write_terminal();
                self.read_terminal(READ_SIZE);
                self.wake_if_over();
            }
            Ends::Log { pipe, file } => {
                if !read_log(pipe, file) {
                    self.ends = Ends::Closed;
                }
            }
        }
    }

    /// Takes the input offered, and writes at once what the program takes.
    pub fn push_input(&mut self) {
        match &mut self.ends {
            Ends::Pipes { stdin, .. } => write_input(stdin, &mut self.input),
            Ends::Terminal { .. } => self.write_terminal(),
            Ends::Closed | Ends::Log { .. } => {}
        }
    }

    fn write_terminal(&mut self) {
        let Ends::Terminal { master, asleep } = &mut self.ends else { return };
        while !self.input.waiting().is_empty() {
            let waiting = self.input.waiting();
            match rustix::io::write(&*master, waiting) {
                Ok(n) => {
                    self.at_line_start = waiting.get(..n).is_some_and(|b| b.ends_with(b"\n"));
                    self.input.wrote(n);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    *asleep = true;
                    return;
                }
            }
        }
        if self.input.at_end() && !self.end_written {
            self.end_written = true;
            // In line mode end-of-file is a character; it ends a line begun first, so that takes two.
            if let Some(c) = pty::end_of_file(&*master) {
                let count = if self.at_line_start { 1 } else { 2 };
                let _ = rustix::io::write(&*master, &[c; 2][..count]);
            }
        }
    }

    /// Reads the terminal until it has nothing more, or `max` bytes. True if it has nothing more.
    fn read_terminal(&mut self, max: usize) -> bool {
        let Ends::Terminal { master, asleep } = &mut self.ends else { return true };
        let mut bytes = [0u8; READ_SIZE];
        let mut left = max;
        while left > 0 {
            let count = left.min(READ_SIZE);
            match rustix::io::read(&*master, &mut bytes[..count]) {
                Ok(0) => return true,
                Ok(n) => {
                    self.stdout.push(&bytes[..n]);
                    left -= n;
                    // One read of a terminal gives at most a page: go on while there is room.
                    if max == READ_SIZE && self.stdout.room() < READ_SIZE {
                        return false;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return true,
                Err(_) => {
                    *asleep = true;
                    return true;
                }
            }
        }
        false
    }

    /// The terminal's session is about to end, which drops what the kernel still holds: take it.
    pub fn take_last_words(&mut self) {
        self.read_terminal(LAST_WORDS_MAX);
    }

    /// The program has ended: no input is taken any more. Returns how much it had written.
    pub fn program_ended(&mut self) -> (u64, u64) {
        self.input.close();
        self.ended = true;
        let mut unread = (0, 0);
        match &mut self.ends {
            Ends::Closed | Ends::Terminal { .. } => {}
            Ends::Pipes { stdin, stdout, stderr } => {
                *stdin = None;
                unread = (unread_in(stdout), unread_in(stderr));
            }
            Ends::Log { pipe, file } => {
                let mut left = unread_in_fd(pipe);
                while left > 0 && read_log(pipe, file) {
                    left = left.saturating_sub(READ_SIZE as u64);
                }
            }
        }
        (self.stdout.end() + unread.0, self.stderr.end() + unread.1)
    }

    /// Nobody reads the output any more. A terminal stays: it is input as well, and its program is
    /// told by a hang-up.
    pub fn close_output(&mut self, stream: Stream) {
        let Ends::Pipes { stdout, stderr, .. } = &mut self.ends else { return };
        let (fd, output) = match stream {
            Stream::Stdin => return,
            Stream::Stdout => (stdout, &mut self.stdout),
            Stream::Stderr => (stderr, &mut self.stderr),
        };
        *fd = None;
        output.close();
    }

    /// Bytes of output that wait to be fetched.
    pub fn held(&self) -> usize {
        self.stdout.held() + self.stderr.held()
    }

    pub fn forget_unread(&mut self) {
        self.stdout.forget();
        self.stderr.forget();
    }

    /// Closes all descriptors. What was read stays to be fetched.
    pub fn close(&mut self) {
        self.ends = Ends::Closed;
        self.input.close();
        self.stdout.finish();
        self.stderr.finish();
    }

    /// Looks again at a terminal that nobody had open.
    pub fn wake(&mut self) {
        self.wake_if_over();
        if let Ends::Terminal { asleep, .. } = &mut self.ends {
            *asleep = false;
        }
    }

    /// A terminal that nobody has open is at its end when its program is.
    fn wake_if_over(&mut self) {
        if self.ended && matches!(self.ends, Ends::Terminal { asleep: true, .. }) {
            self.close();
        }
    }

    /// Waits for what can be done next.
    pub fn rearm(&mut self) -> io::Result<()> {
        match &mut self.ends {
            Ends::Closed => Ok(()),
            Ends::Pipes { stdin, stdout, stderr } => {
                if let Some(fd) = stdin {
                    let mut flags = EventFlags::empty();
                    flags.set(EventFlags::OUT, !self.input.waiting().is_empty());
                    fd.want(Some(flags))?;
                }
                for (fd, output) in [(stdout, &self.stdout), (stderr, &self.stderr)] {
                    if let Some(fd) = fd {
                        fd.want((output.room() > 0).then_some(EventFlags::IN))?;
                    }
                }
                Ok(())
            }
            Ends::Terminal { master, asleep } => {
                let mut flags = EventFlags::empty();
                flags.set(EventFlags::IN, self.stdout.room() > 0);
                flags.set(EventFlags::OUT, !self.input.waiting().is_empty());
                master.want((!*asleep && !flags.is_empty()).then_some(flags))
            }
            Ends::Log { pipe, .. } => pipe.want(Some(EventFlags::IN)),
        }
    }
}

fn write_input(stdin: &mut Option<Fd>, input: &mut Input) {
    let Some(fd) = stdin else { return };
    while !input.waiting().is_empty() {
        match rustix::io::write(&*fd, input.waiting()) {
            Ok(n) => input.wrote(n),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return,
            Err(_) => {
                input.close();
                break;
            }
        }
    }
    if input.is_closed() || reader_is_gone(fd) {
        input.close();
        *stdin = None;
    } else if input.at_end() {
        *stdin = None;
    }
}

fn reader_is_gone(pipe: &Fd) -> bool {
    let mut fds = [PollFd::new(pipe, PollFlags::empty())];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    let polled = rustix::event::poll(&mut fds, Some(&now));
    polled.is_ok() && fds[0].revents().contains(PollFlags::ERR)
}

fn read_output(fd: &mut Option<Fd>, output: &mut Output) {
    let Some(pipe) = fd else { return };
    let mut bytes = [0u8; READ_SIZE];
    let count = output.room().min(READ_SIZE);
    if count == 0 {
        return;
    }
    match rustix::io::read(&*pipe, &mut bytes[..count]) {
        Ok(n) if n > 0 => output.push(&bytes[..n]),
        Err(Errno::INTR | Errno::AGAIN) => {}
        Ok(_) | Err(_) => {
            output.finish();
            *fd = None;
        }
    }
}

/// False at the end.
fn read_log(pipe: &Fd, file: &mut Logfile) -> bool {
    let mut bytes = [0u8; READ_SIZE];
    match rustix::io::read(pipe, &mut bytes) {
        Ok(n) if n > 0 => {
            file.append(&bytes[..n]);
            true
        }
        Err(Errno::INTR | Errno::AGAIN) => true,
        Ok(_) | Err(_) => false,
    }
}

fn unread_in(fd: &Option<Fd>) -> u64 {
    fd.as_ref().map_or(0, unread_in_fd)
}

fn unread_in_fd(fd: &Fd) -> u64 {
    rustix::io::ioctl_fionread(fd).unwrap_or(0)
}
