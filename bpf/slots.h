/* SPDX-License-Identifier: GPL-2.0-only */
/* Slots: who has which, and how one is taken.
 *
 * A position is in the free queue, or belongs to whoever popped it, until the index has it under a key.  Two CPUs may
 * take a slot each for the same new key; the index takes one of them (BPF_NOEXIST), and the loser gives its own back.
 * The generation grows when a slot is taken, and the slot is live only once the index has it: so a reader that sees
 * a live slot sees its whole key, and a socket that remembers position and generation notices when it is no longer
 * its own.  Only the program that holds a popped position writes its generation: no fetched atomics (Linux 5.10).
 */
#ifndef NODEAGENT_SLOTS_H
#define NODEAGENT_SLOTS_H

#include "maps.h"

#define NO_SLOT 0xffffffffU

static __always_inline int same_key(const struct flow_key *a, const struct flow_key *b)
{
	const __u64 *left = (const __u64 *)a, *right = (const __u64 *)b;
	__u64 difference = 0;

#pragma unroll
	for (int word = 0; word < sizeof(*a) / sizeof(__u64); word++)
		difference |= left[word] ^ right[word];
	return !difference;
}

/* Return the position of a new slot for *key*, or of the one that another CPU took for it meanwhile. */
static __always_inline __u32 take_slot(const struct flow_key *key)
{
	__u32 position = 0, *winner;
	struct flow_slot *slot;
	long refused;

	if (bpf_map_pop_elem(MAP(MAP_FREE), &position)) {
		tally(TALLY_OVERFLOW);
		return NO_SLOT;
	}
	slot = slot_at(position);
	if (!slot)
		return NO_SLOT; /* cannot be: the queue holds positions of the array only */
	slot->generation += 1;
	slot->key = *key;
	refused = bpf_map_update_elem(MAP(MAP_INDEX), (void *)key, &position, BPF_NOEXIST);
	if (!refused) {
		slot->state = SLOT_LIVE;
		tally(TALLY_ENTRIES);
		return position;
	}
	bpf_map_push_elem(MAP(MAP_FREE), &position, 0);
	winner = bpf_map_lookup_elem(MAP(MAP_INDEX), (void *)key);
	if (winner)
		return *winner;
	tally(TALLY_BUSY);
	return NO_SLOT;
}

/* Return the position of *key*'s slot, taking one if it has none. */
static __always_inline __u32 position_of(const struct flow_key *key)
{
	__u32 *known = bpf_map_lookup_elem(MAP(MAP_INDEX), (void *)key);

	return known ? *known : take_slot(key);
}

/* The slot for what found none of its own; NULL if the pod has gone. */
static __always_inline struct flow_slot *overflow_slot(const struct flow_key *key)
{
	struct pod *pod = pod_of(key->pod);
	struct flow_slot *slot;
	__u32 number;

	if (!pod)
		return 0;
	number = pod->number;
	if (number >= PODS)
		return 0;
	slot = slot_at(number * CLASSES + (key->class & (CLASSES - 1)));
	return slot && slot->state == SLOT_LIVE && slot->key.pod == key->pod ? slot : 0;
}

/* The slot that *leg* remembers, if it is still its own: a slot gets another key only with another generation. */
static __always_inline struct flow_slot *slot_kept(const struct leg *leg)
{
	struct flow_slot *slot = slot_at(leg->slot);

	return slot && slot->generation == leg->generation && slot->state == SLOT_LIVE ? slot : 0;
}

/* The slot that *leg* counts in, whose key may have changed since: the one that it remembers, or the one that its key has now. */
static __always_inline struct flow_slot *slot_of(struct leg *leg)
{
	struct flow_slot *slot = slot_kept(leg);
	struct flow_key key;
	__u32 position;

	if (slot && same_key(&slot->key, &leg->key))
		return slot;
	key = leg->key;
	position = position_of(&key);
	if (position == NO_SLOT)
		goto overflow;
	slot = slot_at(position);
	if (!slot)
		goto overflow;
	leg->slot = position;
	leg->generation = slot->generation;
	return slot;
overflow:
	leg->generation = 0;
	slot = overflow_slot(&key);
	if (!slot)
		tally(TALLY_LOST);
	return slot;
}

#endif
