//! `metaflow ctl status`: whether the node is well.

use clap::Args;
use serde_json::Value;

use super::{
    Client, Failure,
    arguments::{Shown, View},
    member,
    output::{Format, Object, one, text},
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    view: View,
}

/// Shows the node's state; degraded when it has problems.
pub(super) async fn run(client: &Client, Arguments { view }: Arguments) -> Result<(), Failure> {
    view.run(async |format| status(client, format).await).await
}

async fn status(client: &Client, format: Format) -> Result<Shown, Failure> {
    let mut status: Object = client.get("/v1/status").await?;
    let problems: Vec<String> =
        status.get("problems").and_then(Value::as_array).into_iter().flatten().map(text).collect();
    let text = if matches!(format, Format::Table | Format::Wide) {
        status.remove("problems");
        one(&status, format)? + &member::of_cluster(client, format).await?
    } else {
        one(&status, format)?
    };
    Ok(Shown { text, trouble: (!problems.is_empty()).then(|| problems.join("; ")) })
}
