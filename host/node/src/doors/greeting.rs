//! A connection's beginning: what the client says first, under a deadline, and the connection with that put back.
//!
//! **Invariant:** no more is read than the preface of HTTP/2 is long, and every byte of it is served again.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use http::Request;
use hyper::service::Service;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// What an HTTP/2 client says first.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Waits until it is clear which version the client speaks.
///
/// # Errors
/// The connection's; `UnexpectedEof` when the client leaves before.
pub(super) async fn greeted<S: AsyncRead + Unpin>(mut stream: S) -> io::Result<Greeted<S>> {
    let mut said = [0; PREFACE.len()];
    let mut len = 0;
    while len < said.len() && said[..len] == PREFACE[..len] {
        match stream.read(&mut said[len..]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => len += read,
        }
    }
    Ok(Greeted { stream, said, len, served: 0 })
}

/// A connection whose first bytes were read already.
pub(super) struct Greeted<S> {
    stream: S,
    said: [u8; PREFACE.len()],
    len: usize,
    served: usize,
}

impl<S: AsyncRead + Unpin> AsyncRead for Greeted<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.served < this.len {
            let end = this.len.min(this.served + buffer.remaining());
            buffer.put_slice(&this.said[this.served..end]);
            this.served = end;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Greeted<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// A service that notes whether anything was ever asked of it.
#[derive(Clone)]
pub(super) struct Asked<S> {
    service: S,
    asked: Arc<AtomicBool>,
}

impl<S> Asked<S> {
    pub(super) fn new(service: S) -> (Self, Arc<AtomicBool>) {
        let asked = Arc::new(AtomicBool::new(false));
        (Self { service, asked: Arc::clone(&asked) }, asked)
    }
}

impl<S: Service<Request<B>>, B> Service<Request<B>> for Asked<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn call(&self, request: Request<B>) -> Self::Future {
        self.asked.store(true, Ordering::Relaxed);
        self.service.call(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn what_was_read_is_served_again_however_it_came() {
        for text in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"PRIVATE", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nframes"] {
            let (mut client, server) = tokio::io::duplex(1);
            let sent = text.to_vec();
            let sending = tokio::spawn(async move { client.write_all(&sent).await });
            let mut greeted = greeted(server).await.expect("greeted");
            let mut seen = vec![0; text.len()];
            for byte in &mut seen {
                *byte = greeted.read_u8().await.expect("a byte");
            }
            assert_eq!(seen, text);
            sending.await.expect("no panic").expect("sent");
        }
    }

    #[tokio::test]
    async fn who_leaves_within_the_preface_is_noticed() {
        let (mut client, server) = tokio::io::duplex(64);
        client.write_all(b"PRI * HT").await.expect("sent");
        drop(client);
        assert!(greeted(server).await.is_err());
    }
}
