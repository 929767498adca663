//! What the verbs about the inside of the cluster share: questions with parameters, and answers of every node side by side.

use serde_json::Value;

use super::{Client, Failure, output::Object};

/// Asks a page with parameters; those without a value are left out.
pub(super) async fn ask(
    client: &Client,
    path: &str,
    parameters: &[(&str, Option<String>)],
) -> Result<Value, Failure> {
    client.get(&format!("{path}{}", query(parameters))).await
}

fn query(parameters: &[(&str, Option<String>)]) -> String {
    let given = parameters.iter().filter_map(|(name, value)| Some((*name, value.as_ref()?)));
    // Any base serves: only what follows the question mark is used.
    match reqwest::Url::parse_with_params("http://node/", given) {
        Ok(url) => url
            .query()
            .filter(|query| !query.is_empty())
            .map_or_else(String::new, |query| format!("?{query}")),
        Err(_) => String::new(),
    }
}

/// What every node answered, and what is wrong when one did not.
pub(super) struct Nodes {
    /// Each node's answer, with its name under `node`.
    pub(super) answers: Vec<Object>,
    pub(super) trouble: Option<String>,
}

/// Takes a page apart that has an answer of each node.
pub(super) fn nodes(page: &Value) -> Nodes {
    let mut answers = Vec::new();
    let mut silent = Vec::new();
    for node in page["nodes"].as_array().into_iter().flatten() {
        let name = text(node, "name");
        match node["answer"].as_object() {
            Some(answer) => {
                let mut answer = answer.clone();
                answer.insert("node".to_owned(), name.into());
                answers.push(answer);
            }
            None => silent.push(format!("{name}: {}", text(node, "unanswered"))),
        }
    }
    Nodes { answers, trouble: trouble(silent) }
}

/// What is wrong with an answer that is made of several: who did not answer.
pub(super) fn unanswered(page: &Value) -> Option<String> {
    let silent = page["unanswered"].as_array().into_iter().flatten();
    trouble(silent.map(|node| format!("{}: {}", text(node, "name"), text(node, "reason"))).collect())
}

fn trouble(silent: Vec<String>) -> Option<String> {
    (!silent.is_empty()).then(|| format!("not every node answered: {}", silent.join("; ")))
}

/// Objects in a list in a page.
pub(super) fn objects(value: &Value) -> Vec<Object> {
    value.as_array().into_iter().flatten().filter_map(Value::as_object).cloned().collect()
}

/// A text in an answer; empty when it is missing.
pub(super) fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

/// A share as a percentage.
pub(super) fn percent(share: &Value) -> String {
    share.as_f64().map_or_else(String::new, |share| format!("{:.1} %", share * 100.0))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parameters_are_encoded_and_missing_ones_left_out() {
        let value = Some("a b&c/é".to_owned());
        assert_eq!(query(&[("x", None), ("name", value)]), "?name=a+b%26c%2F%C3%A9");
        assert_eq!(query(&[("x", None)]), "");
    }

    #[test]
    fn who_did_not_answer_is_named() {
        let page = json!({ "nodes": [
            { "name": "n1", "answer": { "a": 1 } },
            { "name": "n2", "unanswered": "it is dead" },
        ]});
        let Nodes { answers, trouble } = nodes(&page);
        assert_eq!((answers.len(), answers[0]["node"].as_str()), (1, Some("n1")));
        assert_eq!(trouble.as_deref(), Some("not every node answered: n2: it is dead"));
        assert_eq!(unanswered(&json!({ "unanswered": [] })), None);
        let page = json!({ "unanswered": [{ "name": "n3", "reason": "slow" }] });
        assert!(unanswered(&page).unwrap().ends_with("n3: slow"));
    }
}
