//! A workload that looks on while the bundle of another trust domain goes.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::timeout;

use super::{FAR, set_bundle};
use crate::live::{REACH, Stage, seen};
use crate::pki::{Authority, pem};
use crate::plane::{PlaneConfig, Product};
use crate::wire::Messages;
use crate::workload::Svid;

/// A workload whose entry federates with a trust domain that nobody asks for its bundle.
pub struct Bystander(Stage);

impl Bystander {
    /// Starts server and agent, with the bundle of `far.test` and an entry that federates with it.
    ///
    /// # Errors
    /// Says what is refused.
    pub fn start(product: &Product, recorded: &Path) -> Result<Self, String> {
        let messages = Messages::load(&recorded.join("api/api.fds"));
        let stage = Stage::with(product, &messages, PlaneConfig::default())?;
        stage.plane.write("{dir}/far.pem", &pem("CERTIFICATE", &Authority::of(FAR).certificate));
        set_bundle(&stage.plane, "pem", "{dir}/far.pem");
        Ok(Self(stage))
    }

    /// The bundle is deleted in each of the modes, and an open stream sees what that does: nothing, the
    /// bundle gone, the entry gone.
    ///
    /// # Errors
    /// Says what the workload sees instead.
    pub fn delete_bundle(&self) -> Result<(), String> {
        let stage = &self.0;
        let foreign = format!("spiffe://{FAR}");
        let delete = |mode: &str| {
            let delete = ["bundle", "delete", "-id", FAR, "-mode", mode, "-socketPath", "{sock}"];
            stage.plane.run("server", &delete)
        };
        stage.run(async {
            stage.create("federated", "/federated", json!({"federates_with": [FAR]})).await?;
            let mut stream = stage.stream_with(&["/federated"]).await?;
            self.await_jwt_bundle(&foreign, true).await?;

            let (code, _, stderr) = delete("restrict");
            if code != 1 || !stderr.contains("federated with 1 registration entries") {
                return Err(format!("restrict: {code} {stderr}"));
            }
            if stage.workload.jwt_bundles().await.is_ok_and(|bundles| !bundles.contains(&foreign)) {
                return Err("restrict: the bundle is gone".to_owned());
            }

            let (code, _, stderr) = delete("dissociate");
            if code != 0 {
                return Err(format!("dissociate: {stderr}"));
            }
            let is_alone = |svid: &Svid| !svid.federated.contains_key(&foreign);
            seen(&mut stream, &["/federated"], |svids| svids.iter().all(is_alone)).await?;
            self.await_jwt_bundle(&foreign, false).await?;

            set_bundle(&stage.plane, "pem", "{dir}/far.pem");
            stage.create("second", "/second", json!({"federates_with": [FAR]})).await?;
            seen(&mut stream, &["/federated", "/second"], |svids| !svids.iter().all(is_alone)).await?;
            let (code, _, stderr) = delete("delete");
            if code != 0 {
                return Err(format!("delete: {stderr}"));
            }
            seen(&mut stream, &["/federated"], |svids| svids.iter().all(is_alone)).await
        })
    }

    async fn await_jwt_bundle(&self, of: &str, is_wanted: bool) -> Result<(), String> {
        let deadline = Instant::now() + REACH;
        loop {
            let bundles = timeout(REACH, self.0.workload.jwt_bundles()).await;
            let shown = match bundles {
                Ok(Ok(bundles)) if bundles.iter().any(|name| name == of) == is_wanted => return Ok(()),
                other => format!("{other:?}"),
            };
            if Instant::now() > deadline {
                return Err(format!("JWT bundles are {shown}"));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}
