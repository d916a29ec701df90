//! How a daemon ends: it asks the core to leave, waits for that, and loses patience by and by.

use std::time::Duration;

use sinew_scheduler::io::{Input, Leave};
use tokio::time::Instant;

use crate::engine::Engine;

/// Programs get two seconds to end, results and outputs some to be copied, other nodes some to take over. Past this the node is
/// as good as dead to whoever waits.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(10);
/// A word to everybody takes no longer.
const SAID_WITHIN: Duration = Duration::from_secs(1);

/// A wish that the daemon end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Down {
    /// What runs here, and what only this node can lead, is waited for ...
    pub wait: bool,
    /// ... for so long.
    pub deadline: Option<Duration>,
}

/// How far it has come.
#[derive(Debug)]
pub(super) struct Departure {
    engine: Engine,
    stage: Option<Leave>,
    /// When its patience ends.
    until: Option<Instant>,
}

impl Departure {
    pub(super) const fn new(engine: Engine) -> Self {
        Self { engine, stage: None, until: None }
    }

    /// Somebody wishes the daemon to end: one who had asked to wait and asks again waits no longer.
    pub(super) fn asked(&mut self, down: Down) {
        if !down.wait {
            return self.go_to(Leave::HandOver);
        }
        if self.stage.is_none() {
            self.go_to(Leave::WhenDone);
        }
        if self.stage == Some(Leave::WhenDone) {
            self.until = down.deadline.map(|deadline| Instant::now() + deadline);
        }
    }

    /// A signal: the first is a wish like any other, the second is not to be argued with. Returns whether it is time to end.
    pub(super) fn signalled(&mut self) -> bool {
        let again = self.stage >= Some(Leave::HandOver);
        self.asked(Down::default());
        again
    }

    /// Whoever started the daemon is gone.
    pub(super) fn at_once(&mut self) {
        self.go_to(Leave::AtOnce);
    }

    /// Ends when the next stage is due.
    pub(super) async fn due(&self) {
        match self.until {
            Some(until) => tokio::time::sleep_until(until).await,
            None => std::future::pending().await,
        }
    }

    /// Goes on to the next stage. Returns whether it is time to end.
    pub(super) fn hurry(&mut self) -> bool {
        match self.stage {
            Some(Leave::AtOnce) => return true,
            Some(Leave::HandOver) => {
                tracing::warn!(
                    "not everything could be handed over; other nodes take it up once its leases have run out"
                );
                self.go_to(Leave::AtOnce);
            }
            _ => self.go_to(Leave::HandOver),
        }
        false
    }

    fn go_to(&mut self, stage: Leave) {
        if self.stage >= Some(stage) {
            return;
        }
        self.stage = Some(stage);
        self.until = match stage {
            Leave::WhenDone => None,
            Leave::HandOver => Some(Instant::now() + HANDED_OVER_WITHIN),
            Leave::AtOnce => Some(Instant::now() + SAID_WITHIN),
        };
        tracing::info!(?stage, "leaving");
        self.engine.input(Input::Leave(stage));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn patience_ends_stage_by_stage_and_never_grows() {
        let mut departure = Departure::new(Engine::queue().0);
        let began = Instant::now();
        departure.asked(Down { wait: true, deadline: None });
        assert_eq!((departure.stage, departure.until), (Some(Leave::WhenDone), None));
        departure.asked(Down { wait: true, deadline: Some(Duration::from_secs(60)) });
        departure.due().await;
        assert_eq!(began.elapsed().as_secs(), 60);
        assert!(!departure.hurry());
        assert_eq!(departure.stage, Some(Leave::HandOver));
        departure.asked(Down { wait: true, deadline: None });
        departure.due().await;
        assert_eq!(began.elapsed().as_secs(), 70, "to wait after all is no longer an option");
        assert!(!departure.hurry());
        departure.due().await;
        assert!(departure.hurry(), "it never waits for ever");
    }

    #[test]
    fn the_second_signal_ends_it() {
        let mut departure = Departure::new(Engine::queue().0);
        departure.asked(Down { wait: true, deadline: None });
        assert!(!departure.signalled(), "the first ends the wait");
        assert!(departure.signalled());
    }
}
