//! A host with addresses of both families is reached over the first that answers (RFC 8305).
//!
//! Mirrors <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/connection_pooling#happy-eyeballs-support>.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::error::{Error, ErrorKind};

/// How long an attempt is alone before the next one starts beside it (Envoy's).
const ATTEMPT_DELAY: Duration = Duration::from_millis(300);

/// The connection that `dial` makes first, of attempts that begin one after another; whichever is slower is given up.
///
/// # Errors
/// That of the attempt that failed last, when all have.
pub(super) async fn first<T, F>(first: SocketAddr, more: &[SocketAddr], dial: impl Fn(SocketAddr) -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut left = interleaved(first, more).into_iter();
    let mut attempts = FuturesUnordered::new();
    let mut failure = Error::new(ErrorKind::ConnectFailure);
    loop {
        if let Some(address) = left.next() {
            attempts.push(dial(address));
        } else if attempts.is_empty() {
            return Err(failure);
        }
        let ended = async {
            match attempts.next().await {
                Some(ended) => ended,
                None => std::future::pending().await,
            }
        };
        let ended = match left.len() {
            0 => Some(ended.await),
            _ => tokio::time::timeout(ATTEMPT_DELAY, ended).await.ok(),
        };
        match ended {
            Some(Ok(connection)) => return Ok(connection),
            // The next one begins at once.
            Some(Err(error)) => failure = error,
            None => {}
        }
    }
}

/// The families in turn, that of the first address first.
fn interleaved(first: SocketAddr, more: &[SocketAddr]) -> Vec<SocketAddr> {
    let (mut own, mut other) = more.iter().partition::<Vec<SocketAddr>, _>(|address| address.is_ipv4() == first.is_ipv4());
    own.reverse();
    other.reverse();
    let mut all = vec![first];
    while let Some(address) =
        if all.len() % 2 == 1 { other.pop().or_else(|| own.pop()) } else { own.pop().or_else(|| other.pop()) }
    {
        all.push(address);
    }
    all
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tokio::time::{Instant, sleep};

    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn families_take_turns() {
        let more = ["10.0.0.2:1", "10.0.0.3:1", "[::1]:1", "[::2]:1", "10.0.0.4:1"].map(at);
        let order = ["10.0.0.1:1", "[::1]:1", "10.0.0.2:1", "[::2]:1", "10.0.0.3:1", "10.0.0.4:1"].map(at);
        assert_eq!(interleaved(at("10.0.0.1:1"), &more), order);
        assert_eq!(interleaved(at("[::9]:1"), &more[..1]), ["[::9]:1", "10.0.0.2:1"].map(at));
    }

    /// What happens to an attempt: after how many milliseconds, and whether it succeeds.
    async fn race(outcomes: &[(u64, bool)]) -> (Result<usize, ()>, Vec<u64>) {
        let begun = Instant::now();
        let starts = RefCell::new(Vec::new());
        let more: Vec<_> = (1..outcomes.len()).map(|_| at("[::1]:1")).collect();
        let dial = |_| {
            let index = starts.borrow().len();
            starts.borrow_mut().push(u64::try_from(begun.elapsed().as_millis()).unwrap());
            async move {
                let (after, succeeds) = outcomes[index];
                sleep(Duration::from_millis(after)).await;
                if succeeds { Ok(index) } else { Err(Error::new(ErrorKind::ConnectFailure)) }
            }
        };
        let won = first(at("10.0.0.1:1"), &more, dial).await.map_err(drop);
        (won, starts.into_inner())
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_to_answer_wins() {
        assert_eq!(race(&[(100, true), (1, true)]).await, (Ok(0), vec![0]), "it has 300 ms");
        assert_eq!(race(&[(1000, true), (1, true)]).await, (Ok(1), vec![0, 300]));
        assert_eq!(race(&[(400, true), (1000, true)]).await, (Ok(0), vec![0, 300]), "the first one goes on");
        assert_eq!(race(&[(10, false), (10, false), (10, true)]).await, (Ok(2), vec![0, 10, 20]), "no waiting for the dead");
        assert_eq!(race(&[(10, false), (20, false)]).await, (Err(()), vec![0, 10]));
        assert_eq!(race(&[(1000, false), (10, false), (10, false)]).await, (Err(()), vec![0, 300, 310]));
    }
}
