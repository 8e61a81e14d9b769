//! `kvasir token`: what lets a node join the cluster.
//!
//! **Invariant:** `create` prints the token alone, so that a shell can hand it on.

use std::time::Duration;

use kvasir_api::kvasir::cluster::v1::{CreateTokenRequest, ListTokensRequest, RemoveTokenRequest};
use serde_json::json;

use super::connect::Connection;
use super::out::{self, Out};
use crate::clock::utc;

/// `kvasir token`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Token {
    /// Prints a new token, with which one node may join: `kvasir serve --join TOKEN`
    Create(Create),
    /// Prints the tokens that there are, without their secrets
    #[command(visible_alias = "list")]
    Ls,
    /// Forgets a token: nobody can join with it any more
    #[command(visible_alias = "remove")]
    Rm(Rm),
}

/// `kvasir token create`.
#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// How long it is good for (30m, 24h), at most 720h
    #[arg(long, default_value = "1h", value_parser = super::duration, value_name = "DURATION")]
    ttl: Duration,
}

/// `kvasir token rm`.
#[derive(Debug, clap::Args)]
pub(crate) struct Rm {
    /// The token's id, as `token ls` prints it
    #[arg(value_parser = super::hexadecimal, value_name = "ID")]
    id: u64,
}

impl Token {
    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> anyhow::Result<()> {
        match self {
            Token::Create(create) => create.run(connection, out).await,
            Token::Ls => list(connection, out).await,
            Token::Rm(Rm { id }) => {
                let mut nodes = connection.nodes().await?;
                connection.answer(nodes.remove_token(RemoveTokenRequest { id })).await?;
                if out.json_wanted() {
                    out.json(&json!({ "id": format!("{id:x}") }))?
                } else {
                    out.line(format!("token {id:x} removed"))?
                }
                Ok(())
            }
        }
    }
}

impl Create {
    async fn run(self, connection: &Connection, out: &mut Out) -> anyhow::Result<()> {
        let ttl_s = self.ttl.as_secs();
        if ttl_s == 0 {
            return Err(super::Usage("--ttl is shorter than a second; give a time such as 1h".to_owned()).into());
        }
        let mut nodes = connection.nodes().await?;
        let made = connection.answer(nodes.create_token(CreateTokenRequest { ttl_s })).await?;
        if out.json_wanted() {
            let (id, expires) = (format!("{:x}", made.id), utc(made.expires_wall_ms));
            out.json(&json!({ "id": id, "token": made.token, "expires": expires }))?;
        } else {
            out.line(made.token)?;
        }
        Ok(())
    }
}

async fn list(connection: &Connection, out: &mut Out) -> anyhow::Result<()> {
    let mut nodes = connection.nodes().await?;
    let tokens = connection.answer(nodes.list_tokens(ListTokensRequest {})).await?.tokens;
    if out.json_wanted() {
        let token = |token: &kvasir_api::kvasir::cluster::v1::Token| {
            json!({
                "id": format!("{:x}", token.id),
                "expires": utc(token.expires_wall_ms),
                "expired": token.expired,
                "node": (token.node_id != 0).then(|| format!("{:x}", token.node_id)),
            })
        };
        out.json(&json!({ "tokens": tokens.iter().map(token).collect::<Vec<_>>() }))?;
        return Ok(());
    }
    let mut rows = vec![["ID", "EXPIRES", "STATE"].map(str::to_owned).to_vec()];
    rows.extend(tokens.iter().map(|token| {
        let state = match (token.node_id, token.expired) {
            (0, false) => "unused".to_owned(),
            (0, true) => "expired".to_owned(),
            (node, _) => format!("used by {node:x}"),
        };
        vec![format!("{:x}", token.id), utc(token.expires_wall_ms), state]
    }));
    out::table(&rows).into_iter().try_for_each(|line| out.line(line))?;
    Ok(())
}
