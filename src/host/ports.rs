//! The table of attached containers' ports, which changes more often than the others and has containers wait for it.

use std::borrow::Cow;

use super::journal::{Fingerprints, Journal};
use super::{Error, NftSeen, Reconciler, nft};
use crate::attach::Port;
use crate::config::Config;
use crate::plan::{self, NftActual};

impl Reconciler {
    /// Which containers are attached, from now on.
    pub fn set_ports(&mut self, ports: Vec<Port>) {
        self.ports = ports;
    }

    /// Has the rules of these containers' ports in place, before the first packet of a new one, and what they publish.
    pub async fn hold_ports(&mut self, config: &Config, ports: Vec<Port>) -> Result<(), Error> {
        if self.ports == ports {
            return Ok(());
        }
        let opened = |ports: &[Port]| ports.iter().flat_map(|port| port.publish.clone()).collect::<Vec<_>>();
        let differs = opened(&self.ports) != opened(&ports);
        self.put_ports(ports).await?;
        if differs { self.reconcile(config).await.map(drop) } else { Ok(()) }
    }

    /// The configuration, with what attached containers publish beside it.
    pub(super) fn with_ports<'c>(&self, config: &'c Config) -> Cow<'c, Config> {
        let mut publish = self.ports.iter().flat_map(|port| &port.publish).peekable();
        if publish.peek().is_none() {
            return Cow::Borrowed(config);
        }
        let mut config = config.clone();
        config.host.publish.extend(publish);
        Cow::Owned(config)
    }

    async fn put_ports(&mut self, ports: Vec<Port>) -> Result<(), Error> {
        let mut journal = self.store.load()?;
        let (seen, before) = (self.seen.take(), nft::generation().ok());
        let now = if let Some(table) = plan::nft::ports(&self.interface, &ports) {
            self.nft.replace(&table).await?;
            // The next look lists it: that takes as long again.
            let fingerprints = Fingerprints { text: table.fingerprint(), listing: String::new() };
            journal.nft.insert(table.name.clone(), fingerprints);
            NftActual::Intact(table.fingerprint())
        } else {
            let name = plan::nft::ports_name(&self.interface);
            self.nft.remove("bridge", &name).await?;
            journal.nft.remove(&name);
            NftActual::Absent
        };
        self.ports = ports;
        // When this was the one change of the ruleset, what was known of the other tables holds.
        let after = nft::generation().ok();
        let alone = before.is_some_and(|before| after == Some(before.wrapping_add(1)));
        if let Some(NftSeen { generation, mut tables }) = seen.filter(|_| alone)
            && generation == before
        {
            tables.ports = now;
            self.seen = Some(NftSeen { generation: after, tables });
        }
        self.store.save(&journal)
    }

    /// Takes the table's fingerprint when that has not been done yet; nothing has changed since it was put there.
    pub(super) async fn list_ports(&mut self, journal: &Journal) -> Result<(), Error> {
        let name = plan::nft::ports_name(&self.interface);
        if journal.nft.get(&name).is_none_or(|left| !left.listing.is_empty()) {
            return Ok(());
        }
        let listing = self.nft.listing("bridge", &name).await?;
        let unchanged = self.seen.as_ref().is_some_and(|seen| seen.generation == nft::generation().ok());
        let mut journal = self.store.load()?;
        if let (true, Some(listing), Some(left)) = (unchanged, listing, journal.nft.get_mut(&name)) {
            left.listing = listing;
            self.store.save(&journal)?;
        }
        Ok(())
    }
}
