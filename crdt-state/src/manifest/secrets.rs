//! The secrets of a manifest.

use super::check::join;
use super::draft::JobDraft;
use super::fields::{Fields, Item, stand_in};
use super::problem::{Problem, quoted};
use crate::secret::{self, SecretPlace, SecretUse};

const MEND_NAME: &str = "write the name under which `sinew secret set` took it";
const MEND_PLACE: &str = "write exactly one of env and file";

/// The secrets of a list.
pub(super) fn read_secrets(item: &Item<'_>, out: &mut Vec<Problem>) -> Vec<SecretUse> {
    item.list(out).iter().enumerate().map(|(i, item)| read_secret(i, item, out)).collect()
}

fn read_secret(i: usize, item: &Item<'_>, out: &mut Vec<Problem>) -> SecretUse {
    // Valid, and unlike any other.
    let mut secret = SecretUse { name: stand_in(i), place: SecretPlace::File(stand_in(i)) };
    let Some(fields) = Fields::open(item, "secrets", out) else { return secret };
    let name = fields.require("name", MEND_NAME, out).and_then(|item| item.text(out));
    secret.name = name.map_or(secret.name, str::to_owned);
    let place = match (fields.get("env"), fields.get("file")) {
        (Some(env), None) => env.text(out).map(|name| SecretPlace::Env(name.to_owned())),
        (None, Some(file)) => file.text(out).map(|name| SecretPlace::File(name.to_owned())),
        (env, _) => {
            let problem = if env.is_none() { "no place" } else { "more than one place" };
            out.push(Problem::new(&item.path, None, problem, MEND_PLACE));
            None
        }
    };
    secret.place = place.unwrap_or(secret.place);
    secret
}

/// The problems of a draft's secrets: the first, since what is wrong with one often makes others wrong.
pub(super) fn check_secrets(draft: &JobDraft, out: &mut Vec<Problem>) {
    let Err((i, (problem, mend))) = secret::check(&draft.secrets, |name| draft.env.contains_key(name)) else { return };
    let found = draft.secrets.get(i);
    let (key, found) = match found {
        Some(secret) if secret::check_name(&secret.name).is_err() => ("name", secret.name.as_str()),
        Some(SecretUse { place: SecretPlace::Env(name), .. }) => ("env", name.as_str()),
        Some(SecretUse { place: SecretPlace::File(name), .. }) => ("file", name.as_str()),
        None => ("name", ""),
    };
    out.push(Problem::new(join(&format!("secrets[{i}]"), key), quoted(found), problem, mend));
}
