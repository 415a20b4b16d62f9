//! Access logs of a check: into a file that the check reads, instead of stdout.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use skiff_proxy::config::{AccessLog, AccessLogSink, FilterChain, Listener, NetworkFilter, Snapshot};

use crate::sidecar::Translate;

/// The same translation, with every access log that goes to stdout going to `file`.
pub(super) fn redirected(translate: Translate, file: PathBuf) -> Translate {
    Box::new(move |documents| {
        let mut translation = translate(documents)?;
        redirect(&mut translation.snapshot, &file);
        Ok(translation)
    })
}

fn redirect(snapshot: &mut Snapshot, file: &Path) {
    for listener in snapshot.listeners.values_mut() {
        for logs in logs_of(Arc::make_mut(listener)) {
            for log in logs.iter_mut().filter(|log| log.sink == AccessLogSink::Stdout) {
                log.sink = AccessLogSink::File(file.to_owned());
            }
        }
    }
}

fn logs_of(listener: &mut Listener) -> impl Iterator<Item = &mut Vec<AccessLog>> {
    let chains = listener.filter_chains.iter_mut().chain(&mut listener.default_filter_chain);
    chains.map(logs_of_chain).chain([&mut listener.access_log])
}

fn logs_of_chain(chain: &mut FilterChain) -> &mut Vec<AccessLog> {
    match &mut chain.filter {
        NetworkFilter::Http(http) => &mut Arc::make_mut(http).access_log,
        NetworkFilter::Tcp(tcp) => &mut Arc::make_mut(tcp).access_log,
    }
}
