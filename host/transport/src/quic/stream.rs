//! Frames on QUIC streams.

use bytes::Bytes;
use tokio::time::timeout;

use super::connections::why;
use crate::frame::{Decoder, HEAD_BYTES, head};
use crate::network::{BoxFuture, Class, FrameSink, FrameSource, NetworkError, Stream};

/// The first bytes of a stream: version and class.
const HELLO_BYTES: usize = 2;
const VERSION: u8 = 1;
/// How long a peer may take to say what a stream is for.
const HELLO_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);
/// Bytes taken from a stream at once.
const READ_BYTES: usize = 256 * 1024;

fn write_ended(error: quinn::WriteError) -> NetworkError {
    NetworkError::Ended(match &error {
        quinn::WriteError::ConnectionLost(lost) => why(lost),
        other => other.to_string(),
    })
}

fn read_ended(error: quinn::ReadError) -> NetworkError {
    NetworkError::Ended(match &error {
        quinn::ReadError::ConnectionLost(lost) => why(lost),
        other => other.to_string(),
    })
}

/// Opens a stream and says what it is for.
pub(super) async fn open(connection: &quinn::Connection, class: Class, limit: u32) -> Result<Stream, NetworkError> {
    let ended = |error: quinn::ConnectionError| NetworkError::Ended(why(&error));
    let (mut send, receive) = connection.open_bi().await.map_err(ended)?;
    prioritise(&send, class);
    send.write_all(&[VERSION, class as u8]).await.map_err(write_ended)?;
    Ok(stream(send, receive, limit))
}

/// Learns what a stream that a peer opened is for.
pub(super) async fn welcome(
    send: quinn::SendStream,
    mut receive: quinn::RecvStream,
    limit: u32,
) -> Result<(Class, Stream), NetworkError> {
    let mut hello = [0; HELLO_BYTES];
    match timeout(HELLO_TIMEOUT, receive.read_exact(&mut hello)).await {
        Err(_) => return Err(NetworkError::Protocol("a stream was opened and nothing said on it".to_owned())),
        Ok(Err(error)) => return Err(NetworkError::Ended(error.to_string())),
        Ok(Ok(())) => {}
    }
    let [version, class] = hello;
    if version != VERSION {
        return Err(NetworkError::Protocol(format!("a stream of version {version}, this kvasir knows {VERSION}")));
    }
    let class = Class::from_wire(class).ok_or_else(|| NetworkError::Protocol(format!("a stream of unknown class {class}")))?;
    prioritise(&send, class);
    Ok((class, stream(send, receive, limit)))
}

fn prioritise(send: &quinn::SendStream, class: Class) {
    let priority = match class {
        Class::Heartbeat | Class::Vote => 2,
        Class::Append | Class::Read | Class::Forward | Class::Control => 1,
        Class::Snapshot => 0,
    };
    // A stream that is closed already needs none.
    let _ = send.set_priority(priority);
}

pub(super) fn stream(send: quinn::SendStream, receive: quinn::RecvStream, limit: u32) -> Stream {
    Stream {
        sink: Box::new(Sink { send, limit, chunks: Vec::new() }),
        source: Box::new(Source { receive, decoder: Decoder::new(limit) }),
    }
}

struct Sink {
    send: quinn::SendStream,
    limit: u32,
    /// Kept for its room.
    chunks: Vec<Bytes>,
}

impl FrameSink for Sink {
    fn send<'a>(&'a mut self, frames: &'a mut Vec<Vec<Bytes>>) -> BoxFuture<'a, Result<(), NetworkError>> {
        Box::pin(async move {
            self.chunks.clear();
            for parts in frames.drain(..) {
                let length = parts.iter().map(Bytes::len).sum::<usize>();
                let length = u32::try_from(length).ok().filter(|length| *length <= self.limit).ok_or_else(|| {
                    NetworkError::Protocol(format!(
                        "a frame of {length} bytes is more than the {} that are allowed",
                        self.limit
                    ))
                })?;
                self.chunks.push(Bytes::copy_from_slice(&head(length)));
                self.chunks.extend(parts);
            }
            self.send.write_all_chunks(&mut self.chunks).await.map_err(write_ended)
        })
    }

    fn finish(&mut self) {
        // Finished or ended already: the same to the peer.
        let _ = self.send.finish();
    }
}

struct Source {
    receive: quinn::RecvStream,
    decoder: Decoder,
}

impl FrameSource for Source {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, NetworkError>> {
        Box::pin(async move {
            loop {
                let frame = self.decoder.next_frame().map_err(|error| NetworkError::Protocol(error.to_string()))?;
                if frame.is_some() {
                    return Ok(frame);
                }
                match self.receive.read_chunk(READ_BYTES.max(HEAD_BYTES), true).await {
                    Ok(Some(chunk)) => self.decoder.push(&chunk.bytes),
                    Ok(None) => {
                        self.decoder.end().map_err(|error| NetworkError::Protocol(error.to_string()))?;
                        return Ok(None);
                    }
                    Err(error) => return Err(read_ended(error)),
                }
            }
        })
    }
}
