//! A connection to a remote store: opened on first use, and again after an error.

use std::{fmt::Display, time::Duration};

use tokio::runtime::Runtime;

use super::api::StoreError;

/// Time limit for each call.
pub(super) const LIMIT: Duration = Duration::from_secs(5);

pub(super) struct Remote<C> {
    runtime: Runtime,
    client: Option<C>,
    store: &'static str,
}

impl<C> Remote<C> {
    pub(super) fn new(store: &'static str) -> Result<Self, StoreError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime =
            runtime.map_err(|error| StoreError::new(format!("start a thread for {store}"), error))?;
        Ok(Self { runtime, client: None, store })
    }

    /// Starts a task in the background.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(task);
    }

    /// Makes a call over the connection, which is opened if there is none.
    pub(super) fn with<T, E: Display>(
        &mut self,
        doing: &str,
        connect: impl AsyncFnOnce() -> Result<C, E>,
        call: impl AsyncFnOnce(&mut C) -> Result<T, E>,
    ) -> Result<T, StoreError> {
        let error = |why: String| StoreError::new(format!("{doing} in {}", self.store), why);
        let client = &mut self.client;
        let outcome = self.runtime.block_on(async {
            tokio::time::timeout(LIMIT, async {
                let connected = match client.take() {
                    Some(client) => client,
                    None => connect().await?,
                };
                call(client.insert(connected)).await
            })
            .await
        });
        match outcome {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(why)) => {
                *client = None;
                Err(error(why.to_string()))
            }
            Err(_) => {
                *client = None;
                Err(StoreError {
                    unanswered: true,
                    ..error(format!("no answer within {} s", LIMIT.as_secs()))
                })
            }
        }
    }
}
