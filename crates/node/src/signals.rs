//! Signals to the callers of the kernel's requests: which of them end a call.
//!
//! The kernel tells of every signal, of a timer's and of a freezing as of Ctrl-C, and a call that is
//! answered with EINTR is not restarted, whatever sigaction(2) said. Programs do not expect EINTR from
//! calls on files: PostgreSQL takes it for lost data when it comes from fsync. So the caller's
//! pending signals are looked at, as NFS does since it has given up its option "intr".

use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::sync::Notify;
use tokio::time::Instant;
use unum_sys::fuse::Responder;
use unum_sys::pids::Status;

/// How long a change may go on after its caller got a signal.
const CHANGE_GRACE: Duration = Duration::from_secs(2);

/// A caller that catches the signals that ask it to end is let go from calls that are older: they wait for
/// something that is away.
const STUCK_AFTER: Duration = Duration::from_secs(1);

/// How often a caller that got a signal is looked at again: the kernel tells of the first alone.
const LOOK_PERIOD: Duration = Duration::from_millis(50);

/// A call was given up for a signal.
#[derive(Clone, Copy, Debug)]
pub struct Interrupted;

impl From<Interrupted> for Errno {
    fn from(_: Interrupted) -> Self {
        Self::INTR
    }
}

/// How soon a call is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grace {
    /// Nothing is lost with it: at once when its caller dies; once it is stuck, when its caller is asked to end.
    Read,
    /// As a read, after a grace: its outcome is not known once it is given up.
    Change,
    /// When its caller dies.
    Sync,
}

/// The signals that the caller of a request may get.
pub struct Signal {
    came: Arc<Notify>,
    began: Instant,
    caller: u32,
}

impl Signal {
    /// `caller` is the thread as the request's header has it.
    pub fn of(responder: &Responder, caller: u32) -> Self {
        let came = Arc::new(Notify::new());
        let notify = came.clone();
        responder.on_interrupt(move || notify.notify_one());
        Self { came, began: Instant::now(), caller }
    }

    /// Ends when there is a signal that the caller dies of or that it catches: what ends the waiting for a lock.
    pub async fn taken(&self) {
        self.seen(|pending, _| pending.deadly() || pending.caught()).await;
    }

    /// The work's result, or `Interrupted` if the call was to be given up before.
    pub async fn or<T, E: From<Interrupted>>(
        &self,
        grace: Grace,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let given_up = async {
            self.seen(|pending, stuck| {
                pending.deadly() || (grace != Grace::Sync && stuck && pending.asked_to_end())
            })
            .await;
            if grace == Grace::Change {
                tokio::time::sleep(CHANGE_GRACE).await;
            }
        };
        tokio::select! {
            biased;
            result = work => result,
            () = given_up => Err(Interrupted.into()),
        }
    }

    /// Ends when there is a signal and `enough` of the caller's pending ones; its second argument says
    /// whether the call is stuck.
    async fn seen(&self, enough: impl Fn(&Pending, bool) -> bool) {
        self.came.notified().await;
        loop {
            match Pending::of(self.caller) {
                // Nobody can be asked: the caller may be of a PID namespace beside this one.
                None => return,
                Some(pending) if enough(&pending, self.began.elapsed() >= STUCK_AFTER) => return,
                Some(_) => tokio::time::sleep(LOOK_PERIOD).await,
            }
        }
    }
}

/// A set of signals as proc(5) shows it.
type Signals = u64;

const fn signals(numbers: &[i32]) -> Signals {
    let mut set = 0;
    let mut i = 0;
    while i < numbers.len() {
        set |= 1 << (numbers[i] - 1);
        i += 1;
    }
    set
}

const KILL: Signals = signals(&[libc::SIGKILL]);

/// What is sent to have a program end.
const ENDING: Signals = signals(&[libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM]);

/// What a program survives that does not care, see signal(7).
const HARMLESS: Signals = signals(&[
    libc::SIGCHLD,
    libc::SIGCONT,
    libc::SIGURG,
    libc::SIGWINCH,
    libc::SIGSTOP,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
]);

/// The signals that a thread is about to get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pending {
    /// Pending, neither blocked nor ignored.
    pending: Signals,
    /// Those that the program has a function for.
    handled: Signals,
}

impl Pending {
    fn of(thread: u32) -> Option<Self> {
        Self::of_status(&Status::of(thread)?)
    }

    fn of_status(status: &Status) -> Option<Self> {
        let set = |name| Signals::from_str_radix(status.value(name)?, 16).ok();
        let held_back = set("SigBlk")? | set("SigIgn")?;
        // Nothing holds SIGKILL back, and the kernel has it pending for all that kills a whole process.
        let pending = (set("SigPnd")? | set("ShdPnd")?) & (!held_back | KILL);
        Some(Self { pending, handled: set("SigCgt")? })
    }

    fn deadly(&self) -> bool {
        self.pending & !self.handled & !HARMLESS != 0
    }

    fn caught(&self) -> bool {
        self.pending & self.handled != 0
    }

    fn asked_to_end(&self) -> bool {
        self.pending & self.handled & ENDING != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(shared: Signals, blocked: Signals, ignored: Signals, caught: Signals) -> Pending {
        let status = format!(
            "Name:\tcat\nSigPnd:\t{:016x}\nShdPnd:\t{shared:016x}\nSigBlk:\t{blocked:016x}\n\
             SigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\n",
            0
        );
        Pending::of_status(&Status::from(status)).unwrap()
    }

    #[test]
    fn what_has_no_function_kills_unless_it_is_harmless() {
        const INT: Signals = signals(&[libc::SIGINT]);
        const WINCH: Signals = signals(&[libc::SIGWINCH]);
        assert!(pending(INT, 0, 0, 0).deadly());
        assert!(!pending(WINCH | signals(&[libc::SIGSTOP]), 0, 0, 0).deadly());
        assert!(!pending(0, 0, 0, 0).deadly());
        for held_back in [pending(INT, INT, 0, 0), pending(INT, 0, INT, 0)] {
            assert!(!held_back.deadly() && !held_back.caught());
        }
        assert!(pending(KILL, !0, 0, 0).deadly());
    }

    #[test]
    fn only_some_that_are_caught_ask_to_end() {
        const TERM: Signals = signals(&[libc::SIGTERM]);
        const ALRM: Signals = signals(&[libc::SIGALRM]);
        let term = pending(TERM, 0, 0, TERM | ALRM);
        assert!(term.asked_to_end() && term.caught() && !term.deadly());
        let alarm = pending(ALRM, 0, 0, TERM | ALRM);
        assert!(!alarm.asked_to_end() && alarm.caught() && !alarm.deadly());
    }

    #[test]
    fn a_status_that_lacks_a_line_says_nothing() {
        for short in ["Name:\tcat\nSigPnd:\t0\n", ""] {
            assert_eq!(Pending::of_status(&Status::from(short.to_owned())), None);
        }
    }

    #[test]
    fn every_thread_here_can_be_asked() {
        // Whatever its name: it need not be text.
        let named = std::thread::spawn(|| {
            rustix::thread::set_name(c"\xff\nSigPnd:").unwrap();
            Pending::of(rustix::thread::gettid().as_raw_nonzero().get() as u32)
        });
        for of in [Pending::of(std::process::id()), named.join().unwrap()] {
            assert!(!of.unwrap().deadly());
        }
        assert_eq!(Pending::of(0), None);
    }
}
