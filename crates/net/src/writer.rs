//! The writing half of a connection, shared by everybody who sends on it.
//!
//! A frame is put whole into the queue under one short lock, so frames never mix and a sender that
//! is dropped leaves none cut in half. Whoever sends on a quiet connection also writes to the
//! socket, without a task switch; on a busy one the connection's own task writes, after all who are
//! ready had their turn, so that many frames leave in one system call.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use prost::Message;
use tokio::{
    io::AsyncWrite,
    sync::{Notify, watch},
};

use crate::{
    frame::{Kind, encode_head},
    limits::{BODY_COPY_SIZE_MAX, WRITE_QUEUE_BYTES_MAX},
};

/// Buffers that grew beyond this are not kept for reuse, in bytes.
const BUFFER_KEPT_MAX: usize = 256 << 10;

pub(crate) type Output = Pin<Box<dyn AsyncWrite + Send>>;

/// What follows a frame's header.
pub(crate) enum Body<'a> {
    None,
    Raw(Bytes),
    Message(&'a dyn EncodeBody),
}

/// A prost message seen as bytes to append.
pub(crate) trait EncodeBody: Sync {
    fn size(&self) -> usize;
    fn append(&self, out: &mut BytesMut);
}

impl<M: Message> EncodeBody for M {
    fn size(&self) -> usize {
        self.encoded_len()
    }

    fn append(&self, out: &mut BytesMut) {
        self.encode_raw(out);
    }
}

/// The connection does not take frames any more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Closed;

/// How soon a frame shall leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flush {
    /// By this caller, now.
    Now,
    /// By the connection's task, together with what others are about to send.
    Soon,
    /// The caller flushes later.
    Later,
}

pub(crate) struct Writer {
    /// Frames not yet given to the stream.
    queue: Mutex<Queue>,
    /// The stream and what it was given but did not take yet.
    sink: Mutex<Sink>,
    queued: AtomicUsize,
    closed: AtomicBool,
    /// Wakes the writing task.
    work: Notify,
    /// Wakes those who wait for room.
    room: Notify,
    /// True: the connection shall end. The reader and the writing task watch it.
    ending: watch::Sender<bool>,
}

#[derive(Default)]
struct Queue {
    whole: VecDeque<Bytes>,
    tail: BytesMut,
}

struct Sink {
    output: Output,
    whole: VecDeque<Bytes>,
    tail: BytesMut,
    tail_written: usize,
    unflushed: bool,
}

impl Writer {
    pub(crate) fn new(output: Output) -> Self {
        let sink = Sink {
            output,
            whole: VecDeque::new(),
            tail: BytesMut::new(),
            tail_written: 0,
            unflushed: false,
        };
        Writer {
            queue: Mutex::default(),
            sink: Mutex::new(sink),
            queued: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            work: Notify::new(),
            room: Notify::new(),
            ending: watch::Sender::new(false),
        }
    }

    /// Queues a frame. The caller asks for room before, where it sends more than small change.
    pub(crate) fn send(
        &self,
        kind: Kind,
        header: &impl Message,
        body: Body<'_>,
        flush: Flush,
    ) -> Result<(), Closed> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Closed);
        }
        {
            // Counted before anybody can write it: a count below zero would look like a full queue.
            let mut queue = lock(&self.queue);
            let added = queue.push(kind, header, body);
            self.queued.fetch_add(added, Ordering::Relaxed);
        }
        match flush {
            Flush::Now => self.flush_now(),
            Flush::Soon => self.work.notify_one(),
            Flush::Later => {}
        }
        Ok(())
    }

    /// Writes as much as the socket takes; the rest is left to the writing task.
    pub(crate) fn flush_now(&self) {
        let Ok(mut sink) = self.sink.try_lock() else {
            return self.work.notify_one();
        };
        let polled = self.poll_drain(&mut sink, &mut Context::from_waker(Waker::noop()));
        drop(sink);
        match polled {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => self.end(),
            Poll::Pending => self.work.notify_one(),
        }
    }

    /// Whether anything waits to be written.
    pub(crate) fn is_full(&self) -> bool {
        self.queued.load(Ordering::Relaxed) > WRITE_QUEUE_BYTES_MAX
    }

    /// Waits until the queue is short enough, or the connection closed.
    pub(crate) async fn wait_for_room(&self) {
        while self.is_full() && !self.is_closed() {
            let room = self.room.notified();
            if !self.is_full() || self.is_closed() {
                return;
            }
            room.await;
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Takes no more frames, and ends the connection once what is queued is written.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.work.notify_one();
        self.room.notify_waiters();
    }

    /// Ends the connection now.
    pub(crate) fn end(&self) {
        self.close();
        self.ending.send_replace(true);
    }

    /// Completes when the connection shall end.
    pub(crate) fn ending(&self) -> watch::Receiver<bool> {
        self.ending.subscribe()
    }

    /// The writing task: runs until the connection is closed and written out, or ended.
    pub(crate) async fn run(&self) {
        let mut ending = self.ending();
        let writing = async {
            loop {
                self.work.notified().await;
                // All who are ready to send get their turn before the system call.
                tokio::task::yield_now().await;
                loop {
                    let closing = self.is_closed();
                    self.drain().await?;
                    if closing {
                        return self.shut().await;
                    }
                    if !self.is_closed() {
                        break;
                    }
                }
            }
        };
        tokio::select! {
            result = writing => { let _: io::Result<()> = result; }
            _ = ending.wait_for(|ending| *ending) => {}
        }
        self.end();
    }

    /// Whoever flushes meanwhile takes this task's place as the one whom the socket wakes, so a
    /// flush that could not finish wakes this task to take it back.
    async fn drain(&self) -> io::Result<()> {
        loop {
            tokio::select! {
                biased;
                drained = std::future::poll_fn(|cx| self.poll_drain(&mut lock(&self.sink), cx)) => {
                    return drained;
                }
                () = self.work.notified() => {}
            }
        }
    }

    async fn shut(&self) -> io::Result<()> {
        std::future::poll_fn(|cx| lock(&self.sink).output.as_mut().poll_shutdown(cx)).await
    }

    fn poll_drain(&self, sink: &mut Sink, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while sink.has_bytes() {
                let written = ready!(sink.poll_write(cx))?;
                self.note_written(written);
            }
            if !lock(&self.queue).hand_over(sink) {
                break;
            }
        }
        if sink.unflushed {
            ready!(sink.output.as_mut().poll_flush(cx))?;
            sink.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn note_written(&self, written: usize) {
        let before = self.queued.fetch_sub(written, Ordering::Relaxed);
        if before > WRITE_QUEUE_BYTES_MAX {
            self.room.notify_waiters();
        }
    }
}

impl Queue {
    /// The bytes that the frame takes.
    fn push(&mut self, kind: Kind, header: &impl Message, body: Body<'_>) -> usize {
        let before = self.tail.len();
        let body_size = match &body {
            Body::None => 0,
            Body::Raw(bytes) => bytes.len(),
            Body::Message(message) => message.size(),
        };
        encode_head(&mut self.tail, kind, header, body_size);
        let head_size = self.tail.len() - before;
        match body {
            Body::None => {}
            Body::Raw(bytes) if bytes.len() > BODY_COPY_SIZE_MAX => {
                self.whole.push_back(self.tail.split().freeze());
                self.whole.push_back(bytes);
            }
            Body::Raw(bytes) => self.tail.extend_from_slice(&bytes),
            Body::Message(message) => message.append(&mut self.tail),
        }
        head_size + body_size
    }

    /// Gives everything to an empty sink. False: there was nothing.
    fn hand_over(&mut self, sink: &mut Sink) -> bool {
        if self.whole.is_empty() && self.tail.is_empty() {
            return false;
        }
        std::mem::swap(&mut self.whole, &mut sink.whole);
        std::mem::swap(&mut self.tail, &mut sink.tail);
        true
    }
}

impl Sink {
    fn has_bytes(&self) -> bool {
        !self.whole.is_empty() || self.tail_written < self.tail.len()
    }

    /// Writes some of what it has, oldest first.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let chunk = match self.whole.front() {
            Some(chunk) => chunk.as_ref(),
            None => &self.tail[self.tail_written..],
        };
        let written = ready!(self.output.as_mut().poll_write(cx, chunk))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.unflushed = true;
        self.advance(written);
        Poll::Ready(Ok(written))
    }

    fn advance(&mut self, written: usize) {
        if let Some(chunk) = self.whole.front_mut() {
            chunk.advance(written);
            if chunk.is_empty() {
                self.whole.pop_front();
            }
            return;
        }
        self.tail_written += written;
        if self.tail_written == self.tail.len() {
            self.tail_written = 0;
            self.tail.clear();
            if self.tail.capacity() > BUFFER_KEPT_MAX {
                self.tail = BytesMut::new();
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
