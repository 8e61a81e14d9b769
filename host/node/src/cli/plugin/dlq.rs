//! `kvasir plugin dlq`: events that a plugin could not handle.
//!
//! **Invariant:** nothing is dropped unless it is named, or all of it is.

use kvasir_api::kvasir::plugin::v1::drop_dead_letters_request::At;
use kvasir_api::kvasir::plugin::v1::{
    DeadLetter, DeadLettersRequest, DropDeadLettersRequest, ShowDeadLetterRequest, ShowDeadLetterResponse,
};
use serde_json::{Value, json};

use super::one_line;
use crate::cli::connect::Connection;
use crate::cli::out::{self, Out};

/// `kvasir plugin dlq`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Dlq {
    /// Prints a plugin's dead letters
    List {
        /// The plugin's name
        name: String,
    },
    /// Prints one dead letter in full, with the event as far as it is not compacted
    Show {
        /// The plugin's name
        name: String,
        /// The trigger
        trigger: String,
        /// The event's revision as `dlq list` prints it, 17.0 for instance
        #[arg(value_parser = place, value_name = "REVISION")]
        at: At,
    },
    /// Forgets dead letters: some of one trigger, or all with --all
    Drop {
        /// The plugin's name
        name: String,
        /// The trigger; without it, and with --all, every trigger
        #[arg(required_unless_present = "all")]
        trigger: Option<String>,
        /// The events' revisions as `dlq list` prints them
        #[arg(value_parser = place, value_name = "REVISION", required_unless_present = "all", conflicts_with = "all")]
        at: Vec<At>,
        /// All of them
        #[arg(long)]
        all: bool,
    },
}

fn place(text: &str) -> Result<At, String> {
    let (main, sub) = text.split_once('.').unwrap_or((text, "0"));
    match (main.parse(), sub.parse()) {
        (Ok(main), Ok(sub)) => Ok(At { main, sub }),
        _ => Err("not a revision as `dlq list` prints it, 17.0 for instance".to_owned()),
    }
}

impl Dlq {
    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> anyhow::Result<()> {
        match self {
            Dlq::List { name } => list(name, connection, out).await,
            Dlq::Show { name, trigger, at } => {
                let request = ShowDeadLetterRequest { name, trigger, main: at.main, sub: at.sub };
                let mut plugins = connection.plugins().await?;
                show(&connection.answer(plugins.show_dead_letter(request)).await?, out)
            }
            Dlq::Drop { name, trigger, at, all } => {
                let request = DropDeadLettersRequest { name: name.clone(), trigger: trigger.unwrap_or_default(), at, all };
                let mut plugins = connection.plugins().await?;
                let dropped = connection.answer(plugins.drop_dead_letters(request)).await?.dropped;
                if out.json_wanted() {
                    out.json(&json!({ "name": name, "dropped": dropped }))?;
                } else {
                    out.line(format!("{dropped} dead letters of {name} dropped"))?;
                }
                Ok(())
            }
        }
    }
}

async fn list(name: String, connection: &Connection, out: &mut Out) -> anyhow::Result<()> {
    let mut plugins = connection.plugins().await?;
    let mut letters: Vec<DeadLetter> = Vec::new();
    loop {
        let mut request = DeadLettersRequest { name: name.clone(), ..DeadLettersRequest::default() };
        if let Some(last) = letters.last() {
            request.after_trigger.clone_from(&last.trigger);
            (request.after_main, request.after_sub) = (last.main, last.sub);
        }
        let page = connection.answer(plugins.dead_letters(request)).await?;
        let end = page.letters.is_empty() || !page.more;
        letters.extend(page.letters);
        if end {
            break;
        }
    }
    if out.json_wanted() {
        let letters: Vec<_> = letters.iter().map(as_json).collect();
        out.json(&json!({ "letters": letters }))?;
        return Ok(());
    }
    if letters.is_empty() {
        out.line(format!("{name} has no dead letters"))?;
        return Ok(());
    }
    let mut rows = vec![["TRIGGER", "REVISION", "ATTEMPTS", "KEY", "ERROR"].map(str::to_owned).to_vec()];
    for letter in &letters {
        let revision = format!("{}.{}", letter.main, letter.sub);
        let error = one_line(&letter.error);
        rows.push(vec![letter.trigger.clone(), revision, letter.attempts.to_string(), text(&letter.key), error]);
    }
    for line in out::table(&rows) {
        out.line(line)?;
    }
    Ok(())
}

fn show(shown: &ShowDeadLetterResponse, out: &mut Out) -> anyhow::Result<()> {
    let letter = shown.letter.clone().unwrap_or_default();
    if out.json_wanted() {
        let mut object = as_json(&letter);
        object["event"] = match shown.event_found {
            false => Value::Null,
            true => json!({
                "type": if shown.deleted { "DELETE" } else { "PUT" },
                "key": out::base64(&shown.key),
                "value": out::base64(&shown.value),
            }),
        };
        out.json(&object)?;
        return Ok(());
    }
    out.line(format!("trigger    {}", letter.trigger))?;
    out.line(format!("revision   {}.{}", letter.main, letter.sub))?;
    out.line(format!("attempts   {}", letter.attempts))?;
    out.line(format!("error      {}", one_line(&letter.error)))?;
    if !shown.event_found {
        out.line(format!("key        {}", text(&letter.key)))?;
        out.line("event      compacted")?;
        return Ok(());
    }
    out.line(format!("key        {}", text(&shown.key)))?;
    if shown.deleted {
        out.line("event      DELETE")?;
    } else {
        out.line(format!("event      PUT {}", text(&shown.value)))?;
    }
    Ok(())
}

fn as_json(letter: &DeadLetter) -> Value {
    json!({
        "trigger": letter.trigger,
        "main": letter.main,
        "sub": letter.sub,
        "key": out::base64(&letter.key),
        "error": letter.error,
        "attempts": letter.attempts,
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_read_as_it_is_printed() {
        assert_eq!(place("17.3"), Ok(At { main: 17, sub: 3 }));
        assert_eq!(place("17"), Ok(At { main: 17, sub: 0 }));
        for wrong in ["", "x", "1.", ".1", "1.2.3", "-1"] {
            assert!(place(wrong).is_err(), "{wrong}");
        }
    }
}
