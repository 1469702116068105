//! The slots against a model that looks at nothing but the rules, over random moves of the clock.

use ca::slots::{Action, Facts, Held, SlotName, Slots, Status};
use proptest::prelude::*;
use spiffe::UnixSecs;

const TICK: i64 = 10;

/// What a day in the life of a family is made of.
#[derive(Clone, Debug)]
enum Step {
    /// Time passes.
    Wait(i64),
    /// An operator prepares.
    Prepare,
    /// An operator activates.
    Activate,
    /// The server starts again from its journal.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..40_000_i64).prop_map(Step::Wait),
        1 => Just(Step::Prepare),
        1 => Just(Step::Activate),
        1 => Just(Step::Restart),
    ]
}

/// The driver in small: journal, clock, and ids by number.
struct Family {
    slots: Slots<u64>,
    journal: Vec<(u64, i64, Status, SlotName)>,
    lifetime: i64,
    now: i64,
    made: u64,
}

impl Family {
    fn prepare(&mut self) {
        let slot = self.slots.to_prepare();
        self.made += 1;
        self.journal.push((self.made, self.now, Status::Prepared, slot));
        let facts = self.facts(self.made, self.now);
        self.slots.prepared(facts, self.made);
    }

    fn activate(&mut self) {
        let Ok(activation) = self.slots.activate() else { return };
        for (id, _, status, _) in &mut self.journal {
            if Some(id.to_string()) == activation.outgoing {
                *status = Status::Old;
            }
            if id.to_string() == activation.incoming {
                *status = Status::Active;
            }
        }
    }

    fn settle(&mut self) -> usize {
        let mut steps = 0;
        while let Some(action) = self.slots.next(UnixSecs(self.now)) {
            match action {
                Action::Prepare(slot) => {
                    assert_eq!(slot, self.slots.to_prepare());
                    self.prepare();
                }
                Action::Activate => self.activate(),
            }
            steps += 1;
            assert!(steps < 6, "the slots never come to rest");
        }
        steps
    }

    fn restart(&mut self) {
        // The key manager holds the newest key of each slot, so nothing older can be used.
        let newest = |of| self.journal.iter().rev().find(|(.., slot)| *slot == of).map(|(id, ..)| *id);
        let keys = [newest(SlotName::A), newest(SlotName::B)];
        let usable = self.journal.iter().filter(|(id, ..)| keys.contains(&Some(*id)));
        let held: Vec<_> = usable
            .map(|(id, at, status, slot)| {
                let facts = self.facts(*id, *at);
                let held = match status {
                    Status::Prepared => Held::Prepared(facts, *id),
                    Status::Active => Held::Active(facts, *id),
                    Status::Old => Held::Old(facts),
                };
                (*slot, held)
            })
            .collect();
        self.slots = Slots::restore(held.into_iter());
    }

    fn facts(&self, id: u64, at: i64) -> Facts {
        Facts {
            id: id.to_string(),
            issued_at: UnixSecs(at),
            not_after: UnixSecs(at + self.lifetime),
            upstream_authority_id: String::new(),
        }
    }
}

proptest! {
    #[test]
    fn some_authority_always_signs_within_its_time(
        lifetime in 600..200_000_i64,
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut family =
            Family { slots: Slots::default(), journal: Vec::new(), lifetime, now: 0, made: 0 };
        family.settle();
        for step in steps {
            match step {
                Step::Wait(mut seconds) => while seconds > 0 {
                    // The driver looks every ten seconds; a day goes by in bigger steps here.
                    let stride = seconds.min(TICK.max(lifetime / 20));
                    family.now += stride;
                    seconds -= stride;
                    family.settle();
                },
                Step::Prepare => family.prepare(),
                Step::Activate => family.activate(),
                Step::Restart => family.restart(),
            }
            family.settle();

            let (facts, id) = family.slots.active().unwrap();
            prop_assert_eq!(facts.id.clone(), id.to_string());
            prop_assert!(facts.issued_at.0 <= family.now && family.now < facts.not_after.0);
            prop_assert!(family.now <= facts.activate_after().0);
            let active = family.journal.iter().filter(|(_, _, status, _)| *status == Status::Active);
            prop_assert_eq!(active.count(), 1);
            if family.now > facts.prepare_after().0 {
                prop_assert_eq!(family.slots.upcoming().status(), Some(Status::Prepared));
            }
        }
    }
}
