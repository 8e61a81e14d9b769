//! A request's body that has to arrive in time.
//!
//! **Invariant:** a body that is there already costs nothing more: the clock is started when it is waited for.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::BoxError;
use hyper::body::{Body, Frame, SizeHint};
use kvasir_api::Error;
use tokio::time::Sleep;
use tonic::Status;

/// A body with a deadline, or without one.
pub(super) struct Timely<B> {
    body: B,
    within: Option<Duration>,
    clock: Option<Pin<Box<Sleep>>>,
}

impl<B> Timely<B> {
    pub(super) fn new(body: B, within: Option<Duration>) -> Self {
        Self { body, within, clock: None }
    }
}

impl<B> Body for Timely<B>
where
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let Some(within) = this.within else { return Poll::Pending };
        let clock = this.clock.get_or_insert_with(|| Box::pin(tokio::time::sleep(within)));
        match clock.as_mut().poll(context) {
            Poll::Pending => Poll::Pending,
            // It never reached the engine, so that it was certainly not done; etcd has no other word for a request that took too long.
            Poll::Ready(()) => Poll::Ready(Some(Err(Box::new(Status::from(Error::Timeout))))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
