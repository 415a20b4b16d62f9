//! A downstream HTTP/2 connection.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::core::{Core, Event, Options, Role, Shared};
use super::driver::Driver;
use super::message::Limits;
use super::stream::{Handle, Respond};
use super::{Incoming, Outgoing, Tunnel};
use crate::config::HttpConnectionManager;
use crate::flags::ResponseFlags;
use crate::http::body::BodySize;
use crate::http::exchange::{Exchange, Outcome, handle};
use crate::http::head::{RequestHead, ResponseHead, Version};
use crate::http::manager::Connection;
use crate::http::pipe::Source;
use crate::http::request_body::RequestBody;
use crate::http::responder::Responder;
use crate::net;

/// The preface and the first settings must arrive within this time.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves a connection until it closes; each stream is a task of its own on this worker.
pub async fn serve(connection: Rc<Connection>, stream: net::Stream) {
    let config = connection.manager.config.clone();
    let core = Rc::new(RefCell::new(Core::new(options(&config))));
    let mut server = Server {
        driver: Driver::new(stream, core.clone()),
        core,
        phase: Phase::Serving,
        opened: Instant::now(),
        timer: Timer::default(),
        config,
    };
    let mut drain = pin!(connection.drain.wait());
    loop {
        match poll_fn(|cx| server.poll(cx, drain.as_mut())).await {
            Next::Event(Event::Request { stream, head, size }) => {
                spawn(&connection, &server.core, stream, head, size);
                let served = server.core.borrow().floods.opened;
                if server.config.max_requests_per_connection.is_some_and(|max| served >= u64::from(max)) {
                    server.drain();
                }
            }
            Next::Event(Event::Refused { details, is_limit }) => refused(&connection, details, is_limit),
            Next::Drain => server.drain(),
            Next::Close => break,
        }
    }
    let ours = {
        let core = server.core.borrow();
        core.broken.is_some() || core.last_accepted.is_some()
    };
    if ours {
        server.driver.linger(server.config.delayed_close_timeout).await;
    }
}

fn options(config: &HttpConnectionManager) -> Options {
    Options {
        role: Role::Server,
        stream_window: config.http2.initial_stream_window_size,
        connection_window: config.http2.initial_connection_window_size,
        max_streams: config.http2.max_concurrent_streams,
        limits: Limits {
            bytes: config.max_request_headers_bytes as usize,
            fields: config.max_headers_count as usize,
            connect_protocol: config.http2.allow_connect,
            underscores: config.headers_with_underscores,
        },
        lenient: config.http2.override_stream_error_on_invalid_http_message,
    }
}

enum Next {
    Event(Event),
    Drain,
    Close,
}

/// How far the connection is on its way to its end.
#[derive(Clone, Copy)]
enum Phase {
    Serving,
    /// The caller knows, and may have sent requests before it did.
    Announced(Instant),
    /// Only what has come is served.
    Ending,
}

struct Server {
    driver: Driver,
    core: Shared,
    phase: Phase,
    opened: Instant,
    timer: Timer,
    config: std::sync::Arc<HttpConnectionManager>,
}

impl Server {
    fn poll(&mut self, cx: &mut Context<'_>, drain: Pin<&mut impl Future<Output = ()>>) -> Poll<Next> {
        if let Poll::Ready(event) = self.driver.poll(cx) {
            return Poll::Ready(event.map_or(Next::Close, Next::Event));
        }
        if matches!(self.phase, Phase::Serving) && drain.poll(cx).is_ready() {
            return Poll::Ready(Next::Drain);
        }
        if matches!(self.phase, Phase::Announced(_)) && self.core.borrow().drain_answered {
            return Poll::Ready(Next::Drain);
        }
        let settled = self.core.borrow().settled;
        ready!(self.timer.poll(cx, self.deadline()));
        let over = !settled || matches!(self.phase, Phase::Ending);
        Poll::Ready(if over { Next::Close } else { Next::Drain })
    }

    /// When the connection takes its next step to its end.
    fn deadline(&self) -> Option<Instant> {
        let core = self.core.borrow();
        if !core.settled {
            return Some(self.opened + HANDSHAKE_TIMEOUT);
        }
        match self.phase {
            Phase::Serving => {
                let idle = self.config.idle_timeout.filter(|limit| core.active == 0 && !limit.is_zero());
                let idle = idle.map(|limit| core.idle_since + limit);
                let worn = self.config.max_connection_duration.map(|limit| self.opened + limit);
                [idle, worn].into_iter().flatten().min()
            }
            Phase::Announced(at) => Some(at + self.config.drain_timeout),
            // All is said; the caller has to read it.
            Phase::Ending => (core.active == 0).then(|| core.idle_since + self.config.delayed_close_timeout),
        }
    }

    /// The next step: an announcement first, so that no request is lost that is on its way, then the end.
    fn drain(&mut self) {
        let mut core = self.core.borrow_mut();
        match self.phase {
            Phase::Serving => {
                core.notify_shutdown();
                self.phase = Phase::Announced(Instant::now());
            }
            Phase::Announced(_) => {
                core.shut_down();
                self.phase = Phase::Ending;
            }
            Phase::Ending => {}
        }
    }
}

/// One timer for all deadlines of a connection: it is armed again only when it fires, or when one comes sooner.
#[derive(Default)]
struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    fn poll(&mut self, cx: &mut Context<'_>, deadline: Option<Instant>) -> Poll<()> {
        let Some(deadline) = deadline else { return Poll::Pending };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if deadline <= Instant::now() {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
    }
}

fn spawn(connection: &Rc<Connection>, core: &Shared, id: u32, head: RequestHead, size: BodySize) {
    let stream = Rc::new(Handle { core: core.clone(), id });
    let response = core.borrow_mut().take_heads().1;
    let connection = connection.clone();
    tokio::task::spawn_local(async move {
        let source = match size {
            BodySize::Empty => Source::Empty,
            _ => Source::H2(Incoming::new(stream.clone()), true),
        };
        let mut out = Responder::Http2(Respond::new(stream.clone()));
        let mut exchange = Exchange::new(connection, head, response);
        if let Outcome::Tunnel(tunnel) = handle(&mut exchange, RequestBody::new(source, size), &mut out).await {
            let ours = Tunnel::new(Incoming::new(stream.clone()), Outgoing::new(stream, false));
            tunnel.run_over(ours, &mut exchange).await;
        }
        let heads = exchange.finish();
        if let Responder::Http2(respond) = out {
            respond.recycle(heads);
        }
    });
}

/// The log line of a request that was refused by its header block. Like Envoy, it tells nothing of the request.
fn refused(connection: &Rc<Connection>, details: &'static str, is_limit: bool) {
    let mut exchange = Exchange::new(connection.clone(), RequestHead::new(), ResponseHead::default());
    exchange.malformed = true;
    exchange.info.protocol = Some(Version::Http2);
    exchange.info.details = details.into();
    exchange.info.flags |=
        if is_limit { ResponseFlags::DOWNSTREAM_REMOTE_RESET } else { ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR };
    exchange.finish();
}
