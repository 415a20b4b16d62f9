//! Every wait has an end.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

/// Longer than anything takes on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(20);
/// Between two looks at something that sends no event.
const INTERVAL: Duration = Duration::from_millis(10);

/// The future's outcome.
///
/// # Panics
/// When it takes longer than [`DEADLINE`].
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}"))
}

/// Asks again until there is an answer; for what sends no event.
///
/// # Panics
/// When there is none within [`DEADLINE`].
pub async fn eventually<T>(what: &str, ask: impl AsyncFnMut() -> Option<T>) -> T {
    patiently(DEADLINE, what, ask).await
}

/// The same with a patience of its own, where a deadline of somebody else comes first.
///
/// # Panics
/// When there is no answer within `patience`.
pub async fn patiently<T>(patience: Duration, what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        let asked = Instant::now();
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(started.elapsed() < patience, "{what}: not within {patience:?}");
        // A question that takes work, such as a process of its own, is not asked all of the time.
        sleep(asked.elapsed().max(INTERVAL)).await;
    }
}
