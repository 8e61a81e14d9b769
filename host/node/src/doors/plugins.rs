//! kvasir's plugin service: the operator's side of plugins.
//!
//! **Invariant:** an upload never holds more in memory than it announced, and never more than the largest component.

use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, Stream, StreamExt};
use kvasir_api::kvasir::plugin::v1::install_request::{Header, Part};
use kvasir_api::kvasir::plugin::v1::plugins_server::Plugins;
use kvasir_api::kvasir::plugin::v1::{
    DeadLettersRequest, DeadLettersResponse, DropDeadLettersRequest, DropDeadLettersResponse, InspectRequest, InspectResponse,
    InstallRequest, InstallResponse, ListRequest, ListResponse, LogLine, LogsRequest, PauseRequest, PauseResponse,
    RemoveRequest, RemoveResponse, ResumeRequest, ResumeResponse, ShowDeadLetterRequest, ShowDeadLetterResponse,
};
use kvasir_api::{Error, limits};
use tonic::{Request, Response, Status};

use super::{Door, front};

#[tonic::async_trait]
impl Plugins for Door {
    async fn install(&self, request: Request<tonic::Streaming<InstallRequest>>) -> Result<Response<InstallResponse>, Status> {
        let _permit = self.installs.try_acquire().map_err(|_| {
            Error::Exhausted(format!("{} plugins are being installed already; try again when they are", limits::INSTALLS_MAX))
        })?;
        let (header, component) = receive(request.into_inner()).await?;
        Ok(Response::new(self.plugins.install(header, component).await?))
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        Ok(Response::new(self.plugins.list().await?))
    }

    async fn inspect(&self, request: Request<InspectRequest>) -> Result<Response<InspectResponse>, Status> {
        Ok(Response::new(self.plugins.inspect(&request.into_inner().name).await?))
    }

    type LogsStream = Pin<Box<dyn Stream<Item = Result<LogLine, Status>> + Send>>;

    async fn logs(&self, request: Request<LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let request = request.into_inner();
        let kept = self.plugins.logs(&request.name, request.tail, request.follow).await?;
        let lines = stream::iter(kept.lines.into_iter().map(Ok));
        if !request.follow {
            return Ok(Response::new(Box::pin(lines)));
        }
        let follow = stream::unfold((kept.follow, self.clone()), |(mut follow, mut door)| async {
            let line = tokio::select! {
                line = follow.next() => line?,
                () = door.stopped() => return None,
            };
            Some((Ok(line), (follow, door)))
        });
        Ok(Response::new(Box::pin(lines.chain(follow))))
    }

    async fn remove(&self, request: Request<RemoveRequest>) -> Result<Response<RemoveResponse>, Status> {
        self.plugins.remove(&request.into_inner().name).await?;
        Ok(Response::new(RemoveResponse {}))
    }

    async fn resume(&self, request: Request<ResumeRequest>) -> Result<Response<ResumeResponse>, Status> {
        let ResumeRequest { name, trigger } = request.into_inner();
        if trigger.is_empty() {
            self.plugins.resume(&name).await?;
        } else {
            self.plugins.resume_trigger(&name, &trigger).await?;
        }
        Ok(Response::new(ResumeResponse {}))
    }

    async fn pause(&self, request: Request<PauseRequest>) -> Result<Response<PauseResponse>, Status> {
        self.plugins.pause(&request.into_inner().name).await?;
        Ok(Response::new(PauseResponse {}))
    }

    async fn dead_letters(&self, request: Request<DeadLettersRequest>) -> Result<Response<DeadLettersResponse>, Status> {
        Ok(Response::new(self.plugins.dead_letters(request.into_inner()).await?))
    }

    async fn show_dead_letter(
        &self,
        request: Request<ShowDeadLetterRequest>,
    ) -> Result<Response<ShowDeadLetterResponse>, Status> {
        Ok(Response::new(self.plugins.dead_letter(request.into_inner()).await?))
    }

    async fn drop_dead_letters(
        &self,
        request: Request<DropDeadLettersRequest>,
    ) -> Result<Response<DropDeadLettersResponse>, Status> {
        Ok(Response::new(self.plugins.drop_dead_letters(request.into_inner()).await?))
    }
}

/// Receives a header and the component it announces.
async fn receive(mut parts: impl Stream<Item = Result<InstallRequest, Status>> + Unpin) -> Result<(Header, Bytes), Status> {
    let Some(Part::Header(header)) = next_part(&mut parts).await? else {
        return Err(Error::Invalid("the first message of an installation must be its header".to_owned()).into());
    };
    if header.total_bytes > limits::COMPONENT_BYTES_MAX {
        let (bytes, most) = (header.total_bytes, limits::COMPONENT_BYTES_MAX);
        return Err(Error::Exhausted(format!("the component has {bytes} bytes; at most {most} are taken")).into());
    }
    // Below the check above, so that it fits.
    let total = header.total_bytes as usize;
    // Grows as pieces arrive: an announcement alone costs nothing.
    let mut component = BytesMut::new();
    while let Some(part) = next_part(&mut parts).await? {
        let Part::Data(piece) = part else {
            return Err(Error::Invalid("an installation has one header".to_owned()).into());
        };
        if component.len() + piece.len() > total {
            return Err(Error::Invalid(format!("the component is longer than the {total} bytes announced")).into());
        }
        component.extend_from_slice(&piece);
    }
    if component.len() < total {
        let received = component.len();
        return Err(Error::Invalid(format!("the component ended after {received} of {total} bytes; send it whole")).into());
    }
    Ok((header, component.freeze()))
}

/// The next part; `None` at the stream's end.
async fn next_part(parts: &mut (impl Stream<Item = Result<InstallRequest, Status>> + Unpin)) -> Result<Option<Part>, Status> {
    let pause = Duration::from_millis(limits::INSTALL_PIECE_TIMEOUT_MS);
    let next = tokio::time::timeout(pause, parts.next()).await;
    match next.map_err(|_| Status::deadline_exceeded(format!("no piece of the component came within {pause:?}")))? {
        None => Ok(None),
        Some(Err(status)) => Err(front::stream_error(status)),
        Some(Ok(InstallRequest { part: Some(part) })) => Ok(Some(part)),
        Some(Ok(_)) => Err(Error::Invalid("a message of an installation is empty".to_owned()).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(total_bytes: u64) -> Part {
        Part::Header(Header { total_bytes, ..Header::default() })
    }

    fn data(bytes: &'static [u8]) -> Part {
        Part::Data(Bytes::from_static(bytes))
    }

    async fn received(parts: Vec<Part>) -> Result<Bytes, String> {
        let parts = stream::iter(parts.into_iter().map(|part| Ok(InstallRequest { part: Some(part) })));
        receive(parts).await.map(|(_, component)| component).map_err(|status| status.message().to_owned())
    }

    #[tokio::test]
    async fn the_pieces_are_put_together_in_order() {
        assert_eq!(received(vec![header(4), data(b"ab"), data(b"cd")]).await, Ok("abcd".into()));
    }

    #[tokio::test]
    async fn an_upload_that_is_not_what_it_announced_is_refused() {
        for (parts, reason) in [
            (vec![], "first message"),
            (vec![data(b"x")], "first message"),
            (vec![header(limits::COMPONENT_BYTES_MAX + 1)], "at most"),
            (vec![header(2), data(b"abc")], "longer than the 2 bytes"),
            (vec![header(4), data(b"abc")], "after 3 of 4 bytes"),
            (vec![header(2), header(2)], "one header"),
        ] {
            let refused = received(parts).await.expect_err("refused");
            assert!(refused.contains(reason), "{refused}");
        }
    }
}
