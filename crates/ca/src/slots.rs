//! The two slots of an authority family, and when to fill and switch them.
//!
//! A family (X.509, JWT, WIT) has a current authority, which signs, and a next one, which is
//! published half a lifetime before it is needed, so that everybody trusts it when it starts to sign.
//! Everything here is pure: the time comes in, what to do comes out, and a driver does it.
//!
//! ```text
//! empty --prepared--> Prepared --activate--> Active --next one activated--> Old
//! ```

use std::time::Duration;

use spiffe::UnixSecs;

/// A family of authorities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// CA certificates.
    X509,
    /// Keys of JWT-SVIDs.
    Jwt,
    /// Keys of WIT-SVIDs.
    Wit,
}

impl Family {
    /// The id that the key manager knows the key of `slot` by.
    #[must_use]
    pub const fn key_id(self, slot: SlotName) -> &'static str {
        match (self, slot) {
            (Self::X509, SlotName::A) => "x509-CA-A",
            (Self::X509, SlotName::B) => "x509-CA-B",
            (Self::Jwt, SlotName::A) => "JWT-Signer-A",
            (Self::Jwt, SlotName::B) => "JWT-Signer-B",
            (Self::Wit, SlotName::A) => "WIT-Signer-A",
            (Self::Wit, SlotName::B) => "WIT-Signer-B",
        }
    }
}

/// One of the two slots. They take turns; the key of a slot is replaced when it is prepared again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SlotName {
    /// The first.
    A,
    /// The second.
    B,
}

impl SlotName {
    /// The slot that the journal calls `text`. SPIRE takes every name but `A` for `B`'s other
    /// side; anything but these two is refused here.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "A" => Some(Self::A),
            "B" => Some(Self::B),
            _ => None,
        }
    }

    /// The name in the journal.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::B => "B",
        }
    }

    /// The slot that is not this one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// Where an authority is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// Published, does not sign yet.
    Prepared,
    /// Signs.
    Active,
    /// Has signed; may be tainted and revoked.
    Old,
}

/// What is known of an authority without its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its id: the subject key id of the CA certificate in hex, or the key id.
    pub id: String,
    /// When it was made.
    pub issued_at: UnixSecs,
    /// When it ends.
    pub not_after: UnixSecs,
    /// The upstream authority that signed it, or empty.
    pub upstream_authority_id: String,
}

impl Facts {
    /// After this instant the next authority is to be prepared: half the lifetime before the end,
    /// at most 30 days.
    #[must_use]
    pub fn prepare_after(&self) -> UnixSecs {
        self.before_end(2, PREPARE_AT_MOST)
    }

    /// After this instant the next authority is to sign: a sixth of the lifetime before the end, at
    /// most 7 days.
    #[must_use]
    pub fn activate_after(&self) -> UnixSecs {
        self.before_end(6, ACTIVATE_AT_MOST)
    }

    fn before_end(&self, divisor: i64, at_most: Duration) -> UnixSecs {
        let lifetime = self.not_after.since(self.issued_at);
        let at_most = i64::try_from(at_most.as_secs()).unwrap_or(i64::MAX);
        self.not_after.plus(-(lifetime / divisor).min(at_most))
    }
}

const PREPARE_AT_MOST: Duration = Duration::from_secs(30 * 24 * 3600);
const ACTIVATE_AT_MOST: Duration = Duration::from_secs(7 * 24 * 3600);

/// What a slot holds. `M` is the material to sign with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held<M> {
    /// Nothing.
    Empty,
    /// An authority that does not sign yet.
    Prepared(Facts, M),
    /// The authority that signs.
    Active(Facts, M),
    /// An authority that has signed. Its material is gone from here.
    Old(Facts),
}

impl<M> Held<M> {
    /// The authority, if there is one.
    #[must_use]
    pub const fn facts(&self) -> Option<&Facts> {
        match self {
            Self::Empty => None,
            Self::Prepared(facts, _) | Self::Active(facts, _) | Self::Old(facts) => Some(facts),
        }
    }

    /// The material of an authority that signs or will sign.
    #[must_use]
    pub const fn material(&self) -> Option<&M> {
        match self {
            Self::Empty | Self::Old(_) => None,
            Self::Prepared(_, material) | Self::Active(_, material) => Some(material),
        }
    }

    /// The status, if there is an authority.
    #[must_use]
    pub const fn status(&self) -> Option<Status> {
        match self {
            Self::Empty => None,
            Self::Prepared(..) => Some(Status::Prepared),
            Self::Active(..) => Some(Status::Active),
            Self::Old(_) => Some(Status::Old),
        }
    }

    const fn is_vacant(&self) -> bool {
        matches!(self, Self::Empty | Self::Old(_))
    }
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make a new authority under the key of this slot, then report it with [`Slots::prepared`].
    Prepare(SlotName),
    /// Let the prepared authority sign: [`Slots::activate`].
    Activate,
}

/// What an activation changed; the journal is to be told, the outgoing authority first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activation {
    /// The id of the authority that signed until now, if there was one.
    pub outgoing: Option<String>,
    /// The id of the authority that signs from now on.
    pub incoming: String,
}

/// Why a command about an authority is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// There is no active authority yet.
    #[error("server is initializing")]
    NotActive,
    /// The id is not that of the authority the command is about.
    #[error("unexpected authority ID")]
    Unexpected,
    /// Only an authority in status prepared can be activated.
    #[error("only Prepared authorities can be activated")]
    NotPrepared,
    /// Only an authority in status old can be tainted or revoked.
    #[error("only Old local authorities can be withdrawn")]
    NotOld,
    /// The authority signs right now.
    #[error("the current local authority cannot be withdrawn")]
    Current,
}

/// Both slots of a family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots<M> {
    name: SlotName,
    current: Held<M>,
    next: Held<M>,
}

impl<M> Default for Slots<M> {
    fn default() -> Self {
        Self { name: SlotName::A, current: Held::Empty, next: Held::Empty }
    }
}

impl<M> Slots<M> {
    /// The slots as a journal tells them, given its usable entries from the oldest to the newest.
    ///
    /// The newest active entry is the current authority, the newest other one the next. Without an
    /// active one the next becomes the current: a server that stopped between preparing and
    /// activating goes on where it was. It stays prepared (or old) until [`Slots::next`] has it
    /// activated or replaced.
    pub fn restore(entries: impl DoubleEndedIterator<Item = (SlotName, Held<M>)>) -> Self {
        let mut current = None;
        let mut next = None;
        for (name, held) in entries.rev() {
            match held {
                Held::Empty => {}
                Held::Active(..) if current.is_none() => current = Some((name, held)),
                Held::Active(..) => {}
                Held::Prepared(..) | Held::Old(_) if next.is_none() => next = Some((name, held)),
                Held::Prepared(..) | Held::Old(_) => {}
            }
        }
        match (current, next) {
            // Both in one slot: the key of the older was replaced; it cannot be usable.
            (Some((name, current)), Some((other, _))) if name == other => {
                Self { name, current, next: Held::Empty }
            }
            (Some((name, current)), next) => {
                Self { name, current, next: next.map_or(Held::Empty, |(_, held)| held) }
            }
            (None, Some((name, next))) => Self { name, current: next, next: Held::Empty },
            (None, None) => Self::default(),
        }
    }

    /// What is to be done at `now`, one step at a time; ask again after each.
    ///
    /// Thresholds are strict: nothing happens in the very second of one.
    #[must_use]
    pub fn next(&self, now: UnixSecs) -> Option<Action> {
        match &self.current {
            Held::Empty | Held::Old(_) => Some(Action::Prepare(self.name)),
            Held::Prepared(..) => Some(Action::Activate),
            Held::Active(facts, _) if self.next.is_vacant() => {
                (now > facts.prepare_after()).then_some(Action::Prepare(self.name.other()))
            }
            Held::Active(facts, _) => (now > facts.activate_after()).then_some(Action::Activate),
        }
    }

    /// The slot that a new authority goes to: the current one while it is vacant, else the next,
    /// whatever that holds.
    #[must_use]
    pub const fn to_prepare(&self) -> SlotName {
        if self.current.is_vacant() { self.name } else { self.name.other() }
    }

    /// A new authority was made, published and journalled under the key of [`Slots::to_prepare`].
    pub fn prepared(&mut self, facts: Facts, material: M) {
        let held = Held::Prepared(facts, material);
        if self.current.is_vacant() {
            self.current = held;
        } else {
            self.next = held;
        }
    }

    /// The key of [`Slots::to_prepare`] is about to be replaced: what the slot held cannot sign
    /// again, so it must not be kept as prepared if making the new authority fails.
    pub fn vacate(&mut self) {
        let held = if self.current.is_vacant() { &mut self.current } else { &mut self.next };
        *held = match std::mem::replace(held, Held::Empty) {
            Held::Prepared(facts, _) | Held::Active(facts, _) | Held::Old(facts) => Held::Old(facts),
            Held::Empty => Held::Empty,
        };
    }

    /// Lets the prepared authority sign: the one in the current slot, or else that in the next
    /// slot, with which the current one then changes places and becomes old.
    ///
    /// # Errors
    /// [`SlotError::NotPrepared`] when there is none.
    pub fn activate(&mut self) -> Result<Activation, SlotError> {
        match (&self.current, &self.next) {
            (Held::Prepared(..), _) => {
                let Held::Prepared(facts, material) = std::mem::replace(&mut self.current, Held::Empty)
                else {
                    return Err(SlotError::NotPrepared);
                };
                let incoming = facts.id.clone();
                self.current = Held::Active(facts, material);
                Ok(Activation { outgoing: None, incoming })
            }
            (_, Held::Prepared(..)) => {
                let Held::Prepared(facts, material) = std::mem::replace(&mut self.next, Held::Empty) else {
                    return Err(SlotError::NotPrepared);
                };
                let incoming = facts.id.clone();
                let outgoing = std::mem::replace(&mut self.current, Held::Active(facts, material));
                self.next = match outgoing {
                    Held::Active(facts, _) | Held::Prepared(facts, _) | Held::Old(facts) => Held::Old(facts),
                    Held::Empty => Held::Empty,
                };
                self.name = self.name.other();
                Ok(Activation { outgoing: self.next.facts().map(|facts| facts.id.clone()), incoming })
            }
            _ => Err(SlotError::NotPrepared),
        }
    }

    /// Whether an operator may activate `id` now.
    ///
    /// # Errors
    /// The reason why not.
    pub fn check_activate(&self, id: &str) -> Result<(), SlotError> {
        match &self.next {
            Held::Prepared(facts, _) if facts.id == id => Ok(()),
            Held::Active(facts, _) | Held::Old(facts) if facts.id == id => Err(SlotError::NotPrepared),
            Held::Empty | Held::Prepared(..) | Held::Active(..) | Held::Old(_) => Err(SlotError::Unexpected),
        }
    }

    /// Whether an operator may taint or revoke `id` now.
    ///
    /// # Errors
    /// The reason why not.
    pub fn check_withdraw(&self, id: &str) -> Result<(), SlotError> {
        if self.current.facts().is_some_and(|facts| facts.id == id) {
            return Err(SlotError::Current);
        }
        match &self.next {
            Held::Old(facts) if facts.id == id => Ok(()),
            Held::Prepared(facts, _) | Held::Active(facts, _) if facts.id == id => Err(SlotError::NotOld),
            Held::Empty | Held::Prepared(..) | Held::Active(..) | Held::Old(_) => Err(SlotError::Unexpected),
        }
    }

    /// The authority that signs.
    ///
    /// # Errors
    /// [`SlotError::NotActive`] until there is one.
    pub fn active(&self) -> Result<(&Facts, &M), SlotError> {
        match &self.current {
            Held::Active(facts, material) => Ok((facts, material)),
            Held::Empty | Held::Prepared(..) | Held::Old(_) => Err(SlotError::NotActive),
        }
    }

    /// The name of the current slot.
    #[must_use]
    pub const fn current_name(&self) -> SlotName {
        self.name
    }

    /// What the current slot holds.
    #[must_use]
    pub const fn current(&self) -> &Held<M> {
        &self.current
    }

    /// What the next slot holds.
    #[must_use]
    pub const fn upcoming(&self) -> &Held<M> {
        &self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3600;
    const DAY: i64 = 24 * HOUR;

    fn facts(id: &str, issued_at: i64, lifetime: i64) -> Facts {
        Facts {
            id: id.to_owned(),
            issued_at: UnixSecs(issued_at),
            not_after: UnixSecs(issued_at + lifetime),
            upstream_authority_id: String::new(),
        }
    }

    #[test]
    fn thresholds_follow_the_lifetime_up_to_their_caps() {
        let day = facts("a", 0, DAY);
        let years = facts("b", 0, 3650 * DAY);

        assert_eq!(day.prepare_after(), UnixSecs(12 * HOUR));
        assert_eq!(day.activate_after(), UnixSecs(20 * HOUR));
        assert_eq!(years.prepare_after(), UnixSecs((3650 - 30) * DAY));
        assert_eq!(years.activate_after(), UnixSecs((3650 - 7) * DAY));
    }

    #[test]
    fn a_fresh_family_goes_through_its_life() {
        let mut slots = Slots::default();

        assert_eq!(slots.next(UnixSecs(0)), Some(Action::Prepare(SlotName::A)));
        slots.prepared(facts("one", 0, DAY), ());
        assert_eq!(slots.next(UnixSecs(0)), Some(Action::Activate));
        assert_eq!(slots.activate(), Ok(Activation { outgoing: None, incoming: "one".into() }));
        assert_eq!(slots.next(UnixSecs(12 * HOUR)), None);

        assert_eq!(slots.next(UnixSecs(12 * HOUR + 1)), Some(Action::Prepare(SlotName::B)));
        slots.prepared(facts("two", 12 * HOUR + 1, DAY), ());
        assert_eq!(slots.next(UnixSecs(20 * HOUR)), None);
        assert_eq!(slots.next(UnixSecs(20 * HOUR + 1)), Some(Action::Activate));
        assert_eq!(slots.activate(), Ok(Activation { outgoing: Some("one".into()), incoming: "two".into() }));

        assert_eq!(slots.current_name(), SlotName::B);
        assert_eq!(slots.upcoming().status(), Some(Status::Old));
        assert_eq!(slots.next(UnixSecs(20 * HOUR + 2)), None);
        assert_eq!(slots.next(UnixSecs(25 * HOUR)), Some(Action::Prepare(SlotName::A)));
    }

    #[test]
    fn operators_prepare_activate_and_withdraw_in_order() {
        let mut slots = Slots::default();
        assert_eq!(slots.active(), Err(SlotError::NotActive));
        slots.prepared(facts("one", 0, DAY), ());
        slots.activate().unwrap();

        assert_eq!(slots.check_activate("two"), Err(SlotError::Unexpected));
        slots.prepared(facts("two", 1, DAY), ());
        slots.prepared(facts("three", 2, DAY), ());
        assert_eq!(slots.check_activate("two"), Err(SlotError::Unexpected));
        assert_eq!(slots.check_activate("three"), Ok(()));
        assert_eq!(slots.check_withdraw("three"), Err(SlotError::NotOld));
        assert_eq!(slots.check_withdraw("one"), Err(SlotError::Current));
        slots.activate().unwrap();

        assert_eq!(slots.check_withdraw("one"), Ok(()));
        assert_eq!(slots.check_withdraw("three"), Err(SlotError::Current));
        assert_eq!(slots.check_activate("one"), Err(SlotError::NotPrepared));
        assert_eq!(slots.activate(), Err(SlotError::NotPrepared));
    }

    #[test]
    fn a_failed_preparation_leaves_no_authority_without_its_key() {
        let mut slots = Slots::default();
        slots.prepared(facts("one", 0, DAY), ());
        slots.activate().unwrap();
        slots.prepared(facts("two", 1, DAY), ());

        slots.vacate();

        assert_eq!(slots.upcoming().status(), Some(Status::Old));
        assert_eq!(slots.activate(), Err(SlotError::NotPrepared));
        assert_eq!(slots.active().unwrap().0.id, "one");
    }

    #[test]
    fn a_journal_restores_the_slots() {
        let old = || (SlotName::A, Held::Old(facts("old", 0, DAY)));
        let active = || (SlotName::B, Held::Active(facts("active", 1, DAY), ()));
        let prepared = || (SlotName::A, Held::Prepared(facts("prepared", 2, DAY), ()));

        let both = Slots::restore([old(), active()].into_iter());
        assert_eq!(both.current_name(), SlotName::B);
        assert_eq!(both.active().unwrap().0.id, "active");
        assert_eq!(both.check_withdraw("old"), Ok(()));

        let newest = Slots::restore([old(), active(), prepared()].into_iter());
        assert_eq!(newest.check_activate("prepared"), Ok(()));

        let only_prepared = Slots::restore([prepared()].into_iter());
        assert_eq!(only_prepared.current_name(), SlotName::A);
        assert_eq!(only_prepared.next(UnixSecs(3)), Some(Action::Activate));

        let only_old = Slots::restore([old()].into_iter());
        assert_eq!(only_old.next(UnixSecs(3)), Some(Action::Prepare(SlotName::A)));

        assert_eq!(Slots::<()>::restore([].into_iter()), Slots::default());
    }
}
