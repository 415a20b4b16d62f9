//! The generic suite, and what is special here: what was answered survives any end.

use std::time::SystemTime;

use super::super::suite;
use super::*;
use crate::plane::objects::ObjectMeta;

fn tokens(state: &StateFolder) -> Arc<TokenIssuer> {
    let trust_domain = "cluster.local".parse().unwrap();
    let hour = Duration::from_secs(3600);
    Arc::new(TokenIssuer::load_or_create(state, "plane".to_owned(), trust_domain, hour, Clock::system()).unwrap())
}

fn open_in(folder: &std::path::Path) -> EmbeddedStore {
    let config = folder.join("config");
    std::fs::create_dir_all(&config).unwrap();
    if !config.join("suite.yaml").exists() {
        std::fs::write(config.join("suite.yaml"), suite::FIXTURE).unwrap();
    }
    let state = StateFolder::open(folder.join("state")).unwrap();
    EmbeddedStore::open(&state, config, tokens(&state), Clock::system()).unwrap()
}

#[tokio::test]
async fn it_is_a_store() {
    let folder = tempfile::tempdir().unwrap();
    suite::run(&open_in(folder.path())).await;
}

fn object(name: &str) -> WorkloadEntry {
    let spec = WorkloadEntrySpec { address: "10.0.0.1".to_owned(), ..WorkloadEntrySpec::default() };
    WorkloadEntry::new(ObjectMeta::new(&ObjectKey::new("bookinfo", name)), spec)
}

#[tokio::test]
async fn what_was_answered_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let store = open_in(folder.path());
    let kept = store.put_entry(object("kept")).await.unwrap();
    let removed = store.put_entry(object("removed")).await.unwrap();
    store.delete_entry(&removed.key(), &Expected::any()).await.unwrap();
    drop(store);
    // The thread that writes lets go of the database a moment later than its owner.
    let deadline = SystemTime::now() + Duration::from_secs(10);
    let state = StateFolder::open(folder.path().join("state")).unwrap();
    let again = loop {
        match EmbeddedStore::open(&state, folder.path().join("config"), tokens(&state), Clock::system()) {
            Ok(store) => break store,
            Err(error) if SystemTime::now() > deadline => panic!("{error}"),
            Err(_) => tokio::task::yield_now().await,
        }
    };
    assert_eq!(again.entries(None).await.unwrap(), std::slice::from_ref(&kept));
    // Versions go on, so that nobody takes an old one for a new one.
    let next = again.put_entry(object("next")).await.unwrap();
    let number = |entry: &WorkloadEntry| entry.metadata.resource_version.as_ref().unwrap().parse::<u64>().unwrap();
    assert!(number(&next) > number(&kept));
}

#[tokio::test]
async fn many_writes_at_once_are_few_transactions() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(open_in(folder.path()));
    let mut writes = tokio::task::JoinSet::new();
    for number in 0..500 {
        let store = store.clone();
        writes.spawn(async move { store.put_entry(object(&format!("entry-{number}"))).await.map(drop) });
    }
    while let Some(written) = writes.join_next().await {
        written.unwrap().unwrap();
    }
    assert_eq!(store.entries(Some("bookinfo")).await.unwrap().len(), 500);
}

#[tokio::test]
async fn the_folder_is_followed_and_faults_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(open_in(folder.path()));
    let following = {
        let store = store.clone();
        tokio::spawn(async move { store.follow().await.map(|never| match never {}) })
    };
    let (file, details) = (folder.path().join("config/suite.yaml"), ObjectKey::new(suite::NAMESPACE, "details"));
    let mut changes = store.changes();
    std::fs::write(&file, suite::FIXTURE.replace("name: ratings", "name: details")).unwrap();
    while store.workload_group(&details).await.unwrap().is_none() {
        timeout(Duration::from_secs(20), changes.changed()).await.unwrap().unwrap();
    }
    // A fault, then something good: only the good one is seen.
    std::fs::write(&file, suite::FIXTURE.replace("spec:", "specs:")).unwrap();
    std::fs::write(folder.path().join("config/other.yaml"), "kind: [").unwrap();
    assert!(store.workload_group(&details).await.unwrap().is_some());
    std::fs::remove_file(folder.path().join("config/other.yaml")).unwrap();
    std::fs::write(&file, suite::FIXTURE).unwrap();
    while store.workload_group(&details).await.unwrap().is_some() {
        timeout(Duration::from_secs(20), changes.changed()).await.unwrap().unwrap();
    }
    following.abort();
}

#[tokio::test]
async fn what_somebody_else_has_written_is_not_taken_for_a_database() {
    let folder = tempfile::tempdir().unwrap();
    let state = StateFolder::open(folder.path().join("state")).unwrap();
    std::fs::create_dir_all(folder.path().join("config")).unwrap();
    std::fs::write(folder.path().join("config/suite.yaml"), suite::FIXTURE).unwrap();
    std::fs::write(state.path().join(FILE), "not a database").unwrap();
    let error = EmbeddedStore::open(&state, folder.path().join("config"), tokens(&state), Clock::system()).unwrap_err();
    assert!(error.code() == 69 && error.to_string().contains("plane.redb"), "{error}");
}

#[tokio::test]
async fn an_entry_of_the_folder_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let entry = "\n---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: static, namespace: bookinfo}\n\
        spec: {address: 10.0.0.9}\n";
    std::fs::create_dir_all(folder.path().join("config")).unwrap();
    std::fs::write(folder.path().join("config/suite.yaml"), suite::FIXTURE.to_owned() + entry).unwrap();
    let store = open_in(folder.path());
    assert!(matches!(store.put_entry(object("static")).await, Err(StoreError::Exists(_))));
}
