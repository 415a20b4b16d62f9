//! What no istiod should do, and a sidecar has to survive.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming};
use skiff_proto::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use skiff_proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use skiff_proto::google::protobuf::Any;
use tokio::sync::Notify;
use tokio::time::{Sleep, sleep};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service as _;

use super::State;
use super::discovery::Discovery;

/// Something odd that the next stream, or the next answer on one, does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oddity {
    /// The stream is refused with this code.
    Refuse(tonic::Code),
    /// The stream ends because the WorkloadEntry of the caller is not there yet, in istiod's words.
    Unseen,
    /// The stream gets no answer at all.
    Silence,
    /// The stream breaks in the middle of a message.
    Break,
    /// The stream announces a message of 100 MiB.
    Huge,
    /// A few bytes at a time.
    Drip,
    /// A GOAWAY with the first answer.
    GoAway,
    /// Resources that cannot be decoded, besides the good ones.
    Garbage,
    /// A resource without a name, and one without a body.
    Nameless,
    /// Every resource twice.
    Twice,
    /// No nonce.
    NoNonce,
    /// A response of a type that nobody asked for comes first.
    Foreign,
}

impl Oddity {
    fn is_of_transport(self) -> bool {
        matches!(self, Self::Refuse(_) | Self::Unseen | Self::Silence | Self::Break | Self::Huge | Self::Drip | Self::GoAway)
    }
}

/// What the stream that opens is to do.
pub(super) fn of_transport(state: &State) -> Option<Oddity> {
    let mut oddities = state.oddities.lock().unwrap();
    let at = oddities.iter().position(|oddity| oddity.is_of_transport())?;
    Some(oddities.remove(at))
}

/// What is to be done to the next response.
pub(super) fn of_response(state: &State) -> Vec<Oddity> {
    let mut oddities = state.oddities.lock().unwrap();
    let (now, later) = oddities.iter().partition(|oddity| !oddity.is_of_transport());
    *oddities = later;
    now
}

pub(super) fn distort(oddity: Oddity, response: &mut DeltaDiscoveryResponse) {
    let garbage = Any { type_url: response.type_url.clone(), value: vec![0xff; 40] };
    let named = |name: &str, resource| Resource { name: name.to_owned(), resource, ..Resource::default() };
    match oddity {
        Oddity::Garbage => response.resources.insert(0, named("garbage", Some(garbage))),
        Oddity::Nameless => response.resources.extend([named("", Some(garbage)), named("bodiless", None)]),
        Oddity::Twice => response.resources.extend(response.resources.clone()),
        Oddity::NoNonce => response.nonce.clear(),
        _ => {}
    }
}

/// The answer to the stream that opens.
pub(super) async fn answer(
    oddity: Oddity,
    request: http::Request<Incoming>,
    state: Arc<State>,
    going: &Notify,
) -> Result<http::Response<Body>, Infallible> {
    let bare = |body: Odd| {
        let response = http::Response::builder().header("content-type", "application/grpc");
        response.body(Body::new(body)).unwrap()
    };
    match oddity {
        Oddity::Refuse(code) => return Ok(Status::new(code, "as a test wishes").into_http()),
        Oddity::Unseen => {
            let reason = "proxy metadata indicates that it must correspond to an existing WorkloadEntry, however WorkloadEntry \
                          bookinfo/ratings is not found";
            return Ok(Status::unknown(reason).into_http());
        }
        Oddity::Silence => std::future::pending().await,
        Oddity::Break => return Ok(bare(Odd::Cut(Some(frame(1000, 10))))),
        Oddity::Huge => return Ok(bare(Odd::Open(Some(frame(100 << 20, 1000))))),
        Oddity::GoAway => going.notify_one(),
        _ => {}
    }
    let response = AggregatedDiscoveryServiceServer::new(Discovery(state)).call(request).await?;
    Ok(match oddity {
        Oddity::Drip => {
            response.map(|body| Body::new(Odd::Drip { from: body, rest: Bytes::new(), pause: Box::pin(sleep(Duration::ZERO)) }))
        }
        _ => response,
    })
}

/// The head of a gRPC message that claims a length, and some bytes of it.
fn frame(claimed: u32, sent: usize) -> Bytes {
    [&[0], &claimed.to_be_bytes()[..], &vec![0; sent]].concat().into()
}

/// A body of ours.
enum Odd {
    /// Ends in an error after its bytes.
    Cut(Option<Bytes>),
    /// Does not end.
    Open(Option<Bytes>),
    /// Passes on a few bytes at a time.
    Drip { from: Body, rest: Bytes, pause: Pin<Box<Sleep>> },
}

impl HttpBody for Odd {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.get_mut() {
            Self::Cut(bytes) => Poll::Ready(Some(match bytes.take() {
                Some(bytes) => Ok(Frame::data(bytes)),
                None => Err(Status::from_error(Box::new(io::Error::from(io::ErrorKind::BrokenPipe)))),
            })),
            Self::Open(bytes) => bytes.take().map_or(Poll::Pending, |bytes| Poll::Ready(Some(Ok(Frame::data(bytes))))),
            Self::Drip { from, rest, pause } => loop {
                if pause.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                if !rest.is_empty() {
                    let some = rest.split_to(rest.len().min(100));
                    *pause = Box::pin(sleep(Duration::from_millis(1)));
                    return Poll::Ready(Some(Ok(Frame::data(some))));
                }
                match Pin::new(&mut *from).poll_frame(cx) {
                    Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                        Ok(data) => *rest = data,
                        Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                    },
                    other => return other,
                }
            },
        }
    }
}
