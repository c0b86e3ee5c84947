//! Threads that read requests and hand them to the file system.
//!
//! All readers share the session's one descriptor: the kernel wakes one of them per request, and
//! what they have read survives them as long as that descriptor is kept by anybody.
//!
//! A reader waits inside `read`. To stop it, it gets a signal whose only effect is that `read`
//! returns; the signal is repeated until the reader has seen the order, which closes the gap between
//! its look at the order and its `read`.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::thread::JoinHandleExt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::thread::CpuSet;

use super::abi::{self, opcode};
use super::buffer::Buffer;
use super::decode::{self, DecodeError, Decoded};
use super::inflight::Target;
use super::operation::{Header, Operation};
use super::reply::{self, Responder};
use super::session::Session;

/// Pause between two signals to readers that shall stop.
const STOP_SIGNAL_PAUSE: Duration = Duration::from_millis(2);
/// More readers than this help nobody.
pub const READERS_MAX: usize = 256;

/// One request. The responder wants to be used; for FORGET and NOTIFY_REPLY it does nothing.
pub struct Request {
    pub header: Header,
    pub operation: Operation,
    pub responder: Responder,
}

/// Which threads read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readers {
    pub count: usize,
    /// Reader n runs on the nth CPU of those that this process may use.
    pub pinned: bool,
}

impl Readers {
    /// One per CPU, pinned.
    pub fn per_cpu() -> Readers {
        let count = thread::available_parallelism().map_or(1, usize::from);
        Readers { count, pinned: true }
    }
}

/// Why reading ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The file system was unmounted, or the connection cut.
    Unmounted,
    Stopped,
    Failed(Errno),
}

impl Session {
    /// Serves requests from threads of its own. `handle` answers inline or moves the request
    /// elsewhere; while it runs, its reader reads nothing else. A panic in it answers EIO.
    pub fn run<H>(&self, readers: Readers, handle: H) -> io::Result<Serving>
    where
        H: Fn(Request) + Send + Sync + 'static,
    {
        install_stop_signal();
        let handle = Arc::new(handle);
        let mut serving = Serving { stop: Arc::default(), readers: Vec::new() };
        let cpus = if readers.pinned { usable_cpus() } else { Vec::new() };
        for index in 0..readers.count.clamp(1, READERS_MAX) {
            let reader = Reader { session: self.clone(), stop: serving.stop.clone() };
            let handle = handle.clone();
            let cpu = (!cpus.is_empty()).then(|| cpus[index % cpus.len()]);
            let body = move || {
                unblock_stop_signal();
                pin(cpu);
                reader.read_requests(&*handle)
            };
            match thread::Builder::new().name(format!("fuse-{index}")).spawn(body) {
                Ok(thread) => serving.readers.push(thread),
                // Dropping `serving` stops those that run.
                Err(error) => return Err(error),
            }
        }
        Ok(serving)
    }
}

/// Readers at work. Dropping it orders them to stop without waiting for a handler that is busy.
pub struct Serving {
    stop: Arc<AtomicBool>,
    readers: Vec<JoinHandle<Ended>>,
}

impl Serving {
    /// Waits until the file system is unmounted (or reading fails).
    pub fn wait(mut self) -> Ended {
        let mut ended = Ended::Stopped;
        for reader in self.readers.drain(..) {
            ended = reader.join().unwrap_or(Ended::Failed(Errno::IO));
        }
        ended
    }

    /// No request is read after this returns `Ok`. Requests that were read keep their responders.
    /// If handlers are busy for longer than `patience`, the readers still to be waited for come
    /// back; they read nothing more either.
    pub fn stop(self, patience: Duration) -> Result<Ended, Serving> {
        let deadline = Instant::now() + patience;
        self.order_stop();
        while !self.is_finished() {
            if Instant::now() >= deadline {
                return Err(self);
            }
            thread::sleep(STOP_SIGNAL_PAUSE);
            self.order_stop();
        }
        Ok(self.wait())
    }

    pub fn is_finished(&self) -> bool {
        self.readers.iter().all(JoinHandle::is_finished)
    }

    fn order_stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        for reader in self.readers.iter().filter(|reader| !reader.is_finished()) {
            // SAFETY: the thread has not been joined, so its pthread_t is valid. std has no way to
            // interrupt a thread's system call.
            unsafe { libc::pthread_kill(reader.as_pthread_t(), stop_signal()) };
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // A single signal may fall into the gap before `read`: such a reader stops after its next
        // request. Waiting here could wait for a handler for ever.
        self.order_stop();
    }
}

struct Reader {
    session: Session,
    stop: Arc<AtomicBool>,
}

impl Reader {
    fn read_requests(&self, handle: &(impl Fn(Request) + ?Sized)) -> Ended {
        let mut buffer = Buffer::from_pool(&self.session.pool);
        while !self.stop.load(Ordering::SeqCst) {
            match self.session.device.read(buffer.space()) {
                Ok(len) => self.dispatch(&mut buffer, len, handle),
                Err(error) => {
                    if let Some(ended) = self.after_error(&error) {
                        return ended;
                    }
                }
            }
        }
        Ended::Stopped
    }

    fn after_error(&self, error: &io::Error) -> Option<Ended> {
        match Errno::from_io_error(error).unwrap_or(Errno::IO) {
            // NOENT: the request was withdrawn while it was being read.
            Errno::INTR | Errno::NOENT => None,
            Errno::NODEV | Errno::CONNABORTED => Some(Ended::Unmounted),
            Errno::AGAIN => {
                // Somebody made the shared descriptor non-blocking. A signal ends the wait.
                let _ = rustix::event::poll(
                    &mut [PollFd::new(&self.session.device.as_fd(), PollFlags::IN)],
                    None,
                );
                None
            }
            errno => Some(Ended::Failed(errno)),
        }
    }

    fn dispatch(&self, buffer: &mut Buffer, len: usize, handle: &(impl Fn(Request) + ?Sized)) {
        match decode::decode(&buffer.message(len), self.session.negotiated.dialect()) {
            Ok(decoded) => self.serve(decoded, handle),
            Err(error) => self.refuse(error),
        }
    }

    fn refuse(&self, error: DecodeError) {
        const SILENT: [u32; 4] =
            [opcode::FORGET, opcode::BATCH_FORGET, opcode::INTERRUPT, opcode::NOTIFY_REPLY];
        if let DecodeError::Malformed { raw_unique, opcode } = error
            && !SILENT.contains(&opcode)
        {
            self.respond(raw_unique, Errno::IO);
        }
    }

    fn serve(&self, decoded: Decoded, handle: &(impl Fn(Request) + ?Sized)) {
        let Decoded { raw_unique, header, operation } = decoded;
        match operation {
            Operation::Interrupt { target, resent } => {
                let raw_target = target.0 | if resent { abi::UNIQUE_RESEND } else { 0 };
                self.interrupt(raw_unique, raw_target);
            }
            Operation::Unknown { .. } => self.respond(raw_unique, Errno::NOSYS),
            Operation::Init(_) => self.respond(raw_unique, Errno::PROTO),
            Operation::Destroy => {
                reply::write_message(&self.session.device, 0, raw_unique, &[]);
            }
            operation => {
                let responder = Responder::new(
                    self.session.device.clone(),
                    self.session.in_flight.clone(),
                    raw_unique,
                    header.opcode,
                    operation.wants_reply(),
                );
                let request = Request { header, operation, responder };
                // The responder answers EIO while the panic unwinds; the default hook has told the
                // panic already.
                let _ = panic::catch_unwind(AssertUnwindSafe(|| handle(request)));
            }
        }
    }

    fn interrupt(&self, raw_unique: u64, raw_target: u64) {
        let told = AssertUnwindSafe(|| self.session.in_flight.interrupt(raw_target));
        if let Ok(Target::Unknown) = panic::catch_unwind(told) {
            // Answered, or read by another reader that has not come to enter it: let that one run.
            thread::yield_now();
            self.respond(raw_unique, Errno::AGAIN);
        }
    }

    fn respond(&self, raw_unique: u64, errno: Errno) {
        reply::write_message(&self.session.device, errno.raw_os_error(), raw_unique, &[]);
    }
}

fn usable_cpus() -> Vec<usize> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else { return Vec::new() };
    (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect()
}

/// Best effort: an unpinned reader is slower, not wrong.
fn pin(cpu: Option<usize>) {
    let Some(cpu) = cpu else { return };
    let mut set = CpuSet::new();
    set.set(cpu);
    let _ = rustix::thread::sched_setaffinity(None, &set);
}

/// A real-time signal that neither libc nor a runtime here uses.
fn stop_signal() -> libc::c_int {
    libc::SIGRTMAX() - 3
}

extern "C" fn on_stop_signal(_: libc::c_int) {}

fn install_stop_signal() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: the struct is zeroed, which is a valid sigaction, and then given a handler that
        // touches nothing. No SA_RESTART: `read` shall return. std has no signal handling.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_stop_signal as *const () as libc::sighandler_t;
            libc::sigaction(stop_signal(), &action, std::ptr::null_mut());
        }
    });
}

/// A new thread inherits its maker's mask, which may block everything.
fn unblock_stop_signal() {
    // SAFETY: the set is initialised by sigemptyset before use; only this thread's mask changes.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, stop_signal());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
    }
}
