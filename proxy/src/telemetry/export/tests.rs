use std::cell::Cell;
use std::sync::atomic::AtomicU64;

use metrics::Counter;

use super::*;

struct Counted {
    counters: ExportCounters,
    dropped: Arc<AtomicU64>,
}

fn counted() -> Counted {
    let (exported, dropped) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let counters = ExportCounters { exported: Counter::from_arc(exported), dropped: Counter::from_arc(dropped.clone()) };
    Counted { counters, dropped }
}

impl Counted {
    fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

#[test]
fn what_does_not_fit_is_dropped_and_counted() {
    let (exporters, counted) = (Exporters::default(), counted());
    let get = |form: &Form| exporters.get(&ExportService::grpc("c", "c"), form, None, &counted.counters, &|_| {});
    let many = get(&Form::Zipkin);
    for _ in 0..MAX_RECORDS + 3 {
        many.push(b"x");
    }
    assert_eq!((counted.dropped(), many.pending.lock().unwrap().records), (3, MAX_RECORDS));
    let large = get(&Form::Logs(Bytes::new()));
    large.push(&vec![0; MAX_BYTES]);
    large.push(b"x");
    assert_eq!((counted.dropped(), large.pending.lock().unwrap().records), (4, 1));
    // What nobody can send any longer is lost, too.
    drop(large);
    assert_eq!(counted.dropped(), 5);
}

#[test]
fn who_means_the_same_collector_shares_its_queue() {
    let (exporters, counted, started) = (Exporters::default(), counted(), Cell::new(0));
    let get = |service: &ExportService, resource: &'static [u8]| {
        let form = Form::Spans(Bytes::from_static(resource));
        exporters.get(service, &form, None, &counted.counters, &|_| started.set(started.get() + 1))
    };
    let service = ExportService::grpc("c", "c");
    let first = get(&service, b"a");
    assert!(Arc::ptr_eq(&first, &get(&service, b"a")));
    assert!(!Arc::ptr_eq(&first, &get(&service, b"b")));
    assert!(!Arc::ptr_eq(&first, &get(&ExportService { timeout: Duration::from_secs(1), ..service.clone() }, b"a")));
    assert_eq!((started.get(), exporters.all().len()), (3, 1));
}

#[tokio::test]
async fn a_batch_waits_for_company_but_not_when_there_is_hurry() {
    let (exporters, counted) = (Exporters::default(), counted());
    let exporter = exporters.get(&ExportService::grpc("c", "c"), &Form::Zipkin, None, &counted.counters, &|_| {});
    assert!(!exporter.is_due() && exporter.is_settled());
    exporter.push(b"x");
    assert!(!exporter.is_due() && !exporter.is_settled());
    exporter.hurry.store(true, Ordering::Release);
    assert!(exporter.is_due());
    exporter.hurry.store(false, Ordering::Release);
    for _ in 1..BATCH {
        exporter.push(b"x");
    }
    assert!(exporter.is_due());
}
