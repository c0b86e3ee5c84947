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
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint},
};
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

/// A message seen as bytes to append.
pub(crate) trait EncodeBody: Sync {
    fn size(&self) -> usize;
    fn append(&self, out: &mut Outgoing<'_>);
}

/// Where a message is encoded, piece by piece and in order.
pub struct Outgoing<'a> {
    queue: &'a mut Queue,
}

impl Outgoing<'_> {
    /// Appends the fields of a message.
    pub fn message(&mut self, message: &impl Message) {
        message.encode_raw(&mut self.queue.tail);
    }

    /// Appends what stands before a field of `size` bytes: of another message or of bytes.
    pub fn field(&mut self, tag: u32, size: usize) {
        encode_key(tag, WireType::LengthDelimited, &mut self.queue.tail);
        encode_varint(size as u64, &mut self.queue.tail);
    }

    /// Appends bytes as they are. Many are not copied.
    pub fn bytes(&mut self, bytes: Bytes) {
        self.queue.push_bytes(bytes);
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

/// Frames that wait: what is in `whole` goes before the tail.
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
    /// The writing task waits for the stream. It alone is woken then, so nobody else may poll.
    awaited: bool,
}

impl Writer {
    pub(crate) fn new(output: Output) -> Self {
        let sink = Sink {
            output,
            whole: VecDeque::new(),
            tail: BytesMut::new(),
            tail_written: 0,
            unflushed: false,
            awaited: false,
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
        let mut queue = lock(&self.queue);
        let added = queue.push(kind, header, body);
        // Counted before anybody can write it and count it off again.
        self.queued.fetch_add(added, Ordering::Relaxed);
        drop(queue);
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
        if sink.awaited {
            return;
        }
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
                let closing = self.is_closed();
                self.drain().await?;
                if closing {
                    return self.shut().await;
                }
            }
        };
        tokio::select! {
            result = writing => { let _: io::Result<()> = result; }
            _ = ending.wait_for(|ending| *ending) => {}
        }
        self.end();
        self.let_go();
    }

    async fn drain(&self) -> io::Result<()> {
        std::future::poll_fn(|cx| {
            let mut sink = lock(&self.sink);
            let polled = self.poll_drain(&mut sink, cx);
            sink.awaited = polled.is_pending();
            polled
        })
        .await
    }

    /// Closes the stream and frees what was not written, although somebody may hold this writer for
    /// long yet.
    fn let_go(&self) {
        let mut sink = lock(&self.sink);
        sink.output = Box::pin(tokio::io::sink());
        sink.whole = VecDeque::new();
        (sink.tail, sink.tail_written) = (BytesMut::new(), 0);
        *lock(&self.queue) = Queue::default();
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
        let body_size = match &body {
            Body::None => 0,
            Body::Raw(bytes) => bytes.len(),
            Body::Message(message) => message.size(),
        };
        let before = self.tail.len();
        encode_head(&mut self.tail, kind, header, body_size);
        let head_size = self.tail.len() - before;
        match body {
            Body::None => {}
            Body::Raw(bytes) => self.push_bytes(bytes),
            Body::Message(message) => message.append(&mut Outgoing { queue: self }),
        }
        head_size + body_size
    }

    fn push_bytes(&mut self, bytes: Bytes) {
        if bytes.len() > BODY_COPY_SIZE_MAX {
            self.whole.push_back(self.tail.split().freeze());
            self.whole.push_back(bytes);
        } else {
            self.tail.extend_from_slice(&bytes);
        }
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

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use tokio::io::AsyncReadExt;

    use super::*;

    fn send(writer: &Writer, size: usize) {
        let header = unum_proto::rpc::CallHeader { call: 1 };
        let body = Body::Raw(Bytes::from(vec![7; size]));
        writer.send(Kind::Data, &header, body, Flush::Now).unwrap();
    }

    #[tokio::test]
    async fn whoever_sends_while_the_task_waits_for_the_socket_does_not_stall_it() {
        const SIZE: usize = 64 << 10;
        let (mut far, near) = tokio::io::duplex(1024);
        let writer = Arc::new(Writer::new(Box::pin(near)));
        let writing = writer.clone();
        let task = tokio::spawn(async move { writing.run().await });
        send(&writer, SIZE);
        // The socket is full and the task waits for it; then somebody else sends.
        tokio::time::sleep(Duration::from_millis(50)).await;
        send(&writer, SIZE);
        let mut received = vec![0; 2 * SIZE];
        let reading = far.read_exact(&mut received);
        tokio::time::timeout(Duration::from_secs(5), reading).await.expect("it stalls").unwrap();
        writer.end();
        task.await.unwrap();
    }

    /// Two fields of bytes, of which the second is given away.
    struct Given(Bytes);

    impl EncodeBody for Given {
        fn size(&self) -> usize {
            let before = unum_proto::rpc::CallHeader { call: 1 }.encoded_len();
            before + 1 + prost::encoding::encoded_len_varint(self.0.len() as u64) + self.0.len()
        }

        fn append(&self, out: &mut Outgoing<'_>) {
            out.message(&unum_proto::rpc::CallHeader { call: 1 });
            out.field(3, self.0.len());
            out.bytes(self.0.clone());
        }
    }

    #[test]
    fn many_bytes_of_a_message_are_not_copied_and_frames_stay_in_order() {
        let large = Bytes::from(vec![7; BODY_COPY_SIZE_MAX + 1]);
        let mut queue = Queue::default();
        let header = unum_proto::rpc::CallHeader { call: 1 };
        for body in [&large, &Bytes::from_static(b"small")] {
            let given = Given(body.clone());
            queue.push(Kind::Data, &header, Body::Message(&given));
        }
        assert!(queue.whole.iter().any(|part| part.as_ptr() == large.as_ptr()));
        let mut all: BytesMut = queue.whole.iter().flatten().copied().collect();
        all.unsplit(queue.tail);
        let mut bodies = Vec::new();
        while let Ok(Some(crate::frame::Frame::Data(1, body))) = crate::frame::decode(&mut all) {
            bodies.push(body);
        }
        let [first, second] = bodies.as_slice() else { panic!("{} frames", bodies.len()) };
        assert!(first.ends_with(&large) && second.ends_with(b"small"));
    }

    #[tokio::test]
    async fn a_connection_that_has_ended_keeps_neither_its_socket_nor_its_bytes() {
        let (mut far, near) = tokio::io::duplex(1024);
        let writer = Arc::new(Writer::new(Box::pin(near)));
        let writing = writer.clone();
        let task = tokio::spawn(async move { writing.run().await });
        let body = Bytes::from(vec![7; 64 << 10]);
        let header = unum_proto::rpc::CallHeader { call: 1 };
        writer.send(Kind::Data, &header, Body::Raw(body.clone()), Flush::Now).unwrap();
        writer.send(Kind::Data, &header, Body::Raw(body.clone()), Flush::Now).unwrap();
        writer.end();
        task.await.unwrap();
        // Somebody still holds the writer, as a stream does that waits for its program.
        assert!(body.is_unique());
        let mut rest = Vec::new();
        let reading = far.read_to_end(&mut rest);
        tokio::time::timeout(Duration::from_secs(5), reading).await.expect("it is open").unwrap();
        drop(writer);
    }
}
