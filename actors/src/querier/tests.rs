//! Tests of the querier against a store that is a script.

use std::sync::Mutex;

use super::*;

/// A statement and the settings it came with.
type Asked = (String, Vec<(&'static str, String)>);

/// A store that answers one body for ever, or never.
#[derive(Default)]
struct Script {
    answer: Option<Result<&'static str, u32>>,
    asked: Mutex<Vec<Asked>>,
}

impl Source for Script {
    async fn select(&self, sql: &str, settings: &[(&'static str, String)]) -> Result<Vec<u8>, SourceError> {
        self.asked.lock().unwrap().push((sql.to_owned(), settings.to_vec()));
        match self.answer {
            Some(Ok(body)) => Ok(body.as_bytes().to_vec()),
            Some(Err(code)) => Err(SourceError::Refused { code, message: format!("code {code}") }),
            None => std::future::pending().await,
        }
    }
}

const SQL: &str =
    "SELECT auto_service_1, Sum(request) AS requests FROM application_map GROUP BY auto_service_1";
const BODY: &str = r#"{"meta":[{"name":"c0","type":"String"},{"name":"c1","type":"UInt64"}],
    "data":[["nginx",18446744073709551615],[null,0]],"rows":2,"statistics":{}}"#;

fn querier(answer: Option<Result<&'static str, u32>>) -> Querier<Script> {
    let config =
        Config { running_max: 1, waiting_max: 1, timeout: Duration::from_secs(5), memory_bytes: 1 << 30 };
    Querier::new(Script { answer, asked: Mutex::default() }, config)
}

#[tokio::test]
async fn a_result_keeps_its_rows_and_gets_the_users_names() {
    let querier = querier(Some(Ok(BODY)));
    let answer = querier.answer(SQL, Some("flow_metrics"), 1_700_000_000).await.unwrap();
    let names: Vec<_> = answer.columns.iter().map(|column| column.name.as_str()).collect();
    assert_eq!(names, ["auto_service_1", "requests"]);
    assert_eq!(answer.columns[1].value_type, "UInt64");
    assert_eq!(answer.rows.get(), r#"[["nginx",18446744073709551615],[null,0]]"#);
    assert_eq!(answer.row_count, 2);
}

#[tokio::test]
async fn every_statement_runs_under_limits() {
    let querier = querier(Some(Ok(BODY)));
    querier.answer(SQL, None, 1_700_000_000).await.unwrap();
    let asked = querier.source.asked.lock().unwrap();
    let (sql, settings) = &asked[0];
    assert!(sql.ends_with(" FORMAT JSONCompact") && !sql.contains("Sum(request)"), "{sql}");
    let get = |name| settings.iter().find(|setting| setting.0 == name).map(|setting| setting.1.as_str());
    assert_eq!(get("readonly"), Some("2"));
    assert_eq!(get("max_execution_time"), Some("5"));
    assert_eq!(get("max_memory_usage"), Some("1073741824"));
    assert!(get("max_result_rows").is_some() && get("max_result_bytes").is_some());
}

#[tokio::test]
async fn show_is_answered_without_the_store() {
    let querier = querier(None);
    let answer = querier.answer("SHOW TABLES", None, 1_700_000_000).await.unwrap();
    assert!(answer.rows.get().contains("l7_flow_log"));
    assert!(querier.source.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn what_is_refused_never_reaches_the_store() {
    let querier = querier(Some(Ok(BODY)));
    for sql in
        ["SELECT * FROM url('http://x')", "DROP TABLE l7_flow_log", "", "SELECT nonsense FROM application"]
    {
        let error = querier.answer(sql, None, 1_700_000_000).await.unwrap_err();
        assert!(matches!(error, Error::Refused(_)), "{sql}: {error}");
    }
    assert!(querier.source.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn errors_say_whose_fault_it_is() {
    type Case = (Result<&'static str, u32>, fn(&Error) -> bool);
    let cases: [Case; 5] = [
        (Err(159), |error| matches!(error, Error::TimedOut(_))),
        (Err(396), |error| matches!(error, Error::TooLarge(_))),
        (Err(241), |error| matches!(error, Error::TooLarge(_))),
        (Err(47), |error| matches!(error, Error::Store(_))),
        (Ok("Code: 1. half a result"), |error| matches!(error, Error::Store(_))),
    ];
    for (answer, expected) in cases {
        let error = querier(Some(answer)).answer(SQL, None, 1_700_000_000).await.unwrap_err();
        assert!(expected(&error), "{answer:?}: {error:?}");
    }
}

#[tokio::test]
async fn one_runs_one_waits_one_is_refused_and_a_dropped_query_makes_room() {
    let querier = querier(None);
    let running = querier.answer(SQL, None, 1_700_000_000);
    let waiting = querier.answer(SQL, None, 1_700_000_000);
    tokio::pin!(running, waiting);
    assert!(futures_poll(running.as_mut()).await.is_none());
    assert!(futures_poll(waiting.as_mut()).await.is_none());
    assert_eq!(querier.source.asked.lock().unwrap().len(), 1, "the second waits");
    let error = querier.answer(SQL, None, 1_700_000_000).await.unwrap_err();
    assert!(matches!(error, Error::Busy { running: 1, waiting: 1 }), "{error}");

    let third = querier.answer(SQL, None, 1_700_000_000);
    running.set(third);
    assert!(futures_poll(waiting.as_mut()).await.is_none());
    assert_eq!(querier.source.asked.lock().unwrap().len(), 2, "the second runs now");
}

/// Polls once.
async fn futures_poll<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    std::future::poll_fn(|ctx| match future.as_mut().poll(ctx) {
        std::task::Poll::Ready(output) => std::task::Poll::Ready(Some(output)),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}
