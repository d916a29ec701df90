//! Whether a task's container still does its work, as the engine's checks of it say.

use std::time::Duration;

use bollard::models::{Health, HealthStatusEnum};
use bollard::query_parameters::InspectContainerOptions;
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::program::HealthCheck;

use super::engine::Engine;
use crate::exec::outcome::Failure;

/// The verdict is at most so much older than its news.
const LOOK_EVERY_MAX: Duration = Duration::from_secs(1);
/// Of what the last check printed, so much is told.
const SAID_LEN_MAX: usize = 256;

/// Ready once the container is unhealthy; never, where nothing is to be checked.
pub(super) async fn unhealthy(engine: &Engine, name: &str, check: Option<&HealthCheck>) -> Failure {
    let Some(check) = check else { return std::future::pending().await };
    let every = Duration::from_millis(check.interval_ms).min(LOOK_EVERY_MAX);
    loop {
        tokio::time::sleep(every).await;
        // An engine that does not answer is found out by the wait for the exit.
        let Ok(found) = engine.docker.inspect_container(name, None::<InspectContainerOptions>).await else { continue };
        let health = found.state.and_then(|state| state.health).unwrap_or_default();
        if health.status == Some(HealthStatusEnum::UNHEALTHY) {
            return failure(&health);
        }
    }
}

fn failure(health: &Health) -> Failure {
    let last = health.log.as_ref().and_then(|log| log.last()).cloned().unwrap_or_default();
    let said: String = last.output.unwrap_or_default().trim().chars().take(SAID_LEN_MAX).collect();
    let message = format!(
        "unhealthy: {} checks in a row have failed; the last gave status {} and said: {}",
        health.failing_streak.unwrap_or_default(),
        last.exit_code.unwrap_or(-1),
        if said.is_empty() { "nothing" } else { &said }
    );
    Failure::new(ErrorCode::Exit, message)
}
