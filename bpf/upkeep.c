// SPDX-License-Identifier: GPL-2.0-only
/* What user space does to slots.  The array is frozen, so it asks these programs, by BPF_PROG_TEST_RUN: a program that
 * has begun ends, whatever becomes of the process that asked.  So nothing is ever done by half, and all of them may
 * be asked again: what is done already they answer with DONE_BEFORE.
 *
 * The question is the "packet": 14 bytes of Ethernet header that nobody reads, then a struct question.
 */
#include "slots.h"
#include "upkeep.h"

static __always_inline int read_question(struct __sk_buff *skb, struct question *question)
{
	return bpf_skb_load_bytes(skb, QUESTION_AT, question, sizeof(*question));
}

/* Add what *from* counted to *to*. */
static __always_inline void add_counters(struct flow_slot *to, const struct flow_counters *from)
{
	const __u64 *source = (const __u64 *)from;
	__u64 *target = (__u64 *)&to->counters;

#pragma unroll
	for (int i = 0; i < sizeof(*from) / sizeof(__u64); i++)
		if (source[i])
			__sync_fetch_and_add(&target[i], source[i]);
}

/* The slot that counts *key* from now on, or the one that overflowing counts go to.  A pod that has gone has no
 * reserved slots: its overflow is a flow like any other.
 */
static __always_inline struct flow_slot *slot_for(const struct flow_key *key)
{
	struct flow_slot *reserved = overflow_slot(key);
	__u32 position;

	if (reserved && key->kind == KIND_OVERFLOW)
		return reserved;
	position = position_of(key);
	return position == NO_SLOT ? reserved : slot_at(position);
}

/* Fill the free queue of a new set of maps, FILLED positions at a time. */
int fill(struct __sk_buff *skb)
{
	struct question question = {};

	if (read_question(skb, &question))
		return NOT_UNDERSTOOD;
	for (__u32 i = 0; i < FILLED; i++) {
		__u32 position = question.position + i;

		bpf_map_push_elem(MAP(MAP_FREE), &position, 0);
	}
	return DONE;
}

/* Set up a pod's reserved slots, unless they are its own already. */
int reserve(struct __sk_buff *skb)
{
	struct question question = {};
	struct flow_slot *slot;

	if (read_question(skb, &question) || question.position >= RESERVED)
		return NOT_UNDERSTOOD;
	slot = slot_at(question.position);
	if (!slot)
		return NOT_UNDERSTOOD;
	if (slot->state != SLOT_FREE)
		return slot->state == SLOT_LIVE && slot->key.pod == question.slot.key.pod ? DONE_BEFORE : TAKEN;
	slot->generation += 1;
	slot->key = question.slot.key;
	slot->state = SLOT_LIVE;
	return DONE;
}

/* Let nobody find a slot any more.  Sockets that remember it notice with their next packet. */
int evict(struct __sk_buff *skb)
{
	struct question question = {};
	struct flow_slot *slot;
	struct flow_key key;
	__u32 *position;

	if (read_question(skb, &question))
		return NOT_UNDERSTOOD;
	slot = slot_at(question.position);
	if (!slot)
		return NOT_UNDERSTOOD;
	if (slot->generation != question.generation || slot->state != SLOT_LIVE)
		return DONE_BEFORE;
	slot->state = SLOT_EVICTED;
	key = slot->key;
	position = bpf_map_lookup_elem(MAP(MAP_INDEX), &key);
	if (position && *position == question.position)
		bpf_map_delete_elem(MAP(MAP_INDEX), &key);
	return DONE;
}

/* Let *slot*, evicted, count *key* from now on, unless another one does: what is folded where nothing is free. */
static __always_inline int becomes(struct flow_slot *slot, __u32 position, const struct flow_key *key)
{
	if (bpf_map_update_elem(MAP(MAP_INDEX), (void *)key, &position, BPF_NOEXIST))
		return 0;
	slot->state = SLOT_FREE; /* meanwhile: nobody reads half a key */
	IN_ORDER();
	slot->generation += 1;
	slot->key = *key;
	IN_ORDER();
	slot->state = SLOT_LIVE;
	return 1;
}

/* Give an evicted slot back, once no program that saw it live still runs: add its counters to those of the question's
 * key, if it has one, and empty it.  The first one of a key is made that key's own.
 */
int release(struct __sk_buff *skb)
{
	struct question question = {};
	struct flow_slot *slot, *target;
	struct flow_key key;

	if (read_question(skb, &question))
		return NOT_UNDERSTOOD;
	slot = slot_at(question.position);
	if (!slot)
		return NOT_UNDERSTOOD;
	if (slot->generation != question.generation || slot->state != SLOT_EVICTED)
		return DONE_BEFORE;
	if (question.slot.key.pod) {
		key = question.slot.key;
		if (question.position >= RESERVED && becomes(slot, question.position, &key))
			return DONE;
		target = slot_for(&key);
		if (!target || target == slot)
			return NO_ROOM;
		add_counters(target, &slot->counters);
	}
	__builtin_memset(&slot->counters, 0, sizeof(slot->counters));
	slot->state = SLOT_FREE;
	if (question.position >= RESERVED) {
		bpf_map_push_elem(MAP(MAP_FREE), &question.position, 0);
		tally(TALLY_RETURNED);
	}
	return DONE;
}

/* A slot that nobody finds by *key*: what was evicted before waits there to be folded.  NULL if none is free. */
static __always_inline struct flow_slot *evicted_slot(const struct flow_key *key)
{
	struct flow_slot *slot;
	__u32 position = 0;

	if (bpf_map_pop_elem(MAP(MAP_FREE), &position))
		return 0;
	slot = slot_at(position);
	if (!slot)
		return 0; /* cannot be: the queue holds positions of the array only */
	slot->generation += 1;
	slot->key = *key;
	tally(TALLY_ENTRIES);
	slot->state = SLOT_EVICTED;
	return slot;
}

/* Take over what one slot of the generation of maps before this one had counted; no program writes there any more.
 * What was evicted stays so: its reader has booked it, and must not find it in a live one's counters.
 * What finds no room, which takes a full map and a pod that has gone, is lost, and told.
 */
int carry(struct __sk_buff *skb)
{
	struct question question = {};
	struct flow_slot *target;
	__u32 *carried;

	if (read_question(skb, &question))
		return NOT_UNDERSTOOD;
	carried = bpf_map_lookup_elem(MAP(MAP_CARRIED), &question.position);
	if (!carried)
		return NOT_UNDERSTOOD;
	if (*carried)
		return DONE_BEFORE;
	target = question.slot.state == SLOT_EVICTED ? evicted_slot(&question.slot.key) : 0;
	if (!target)
		target = slot_for(&question.slot.key);
	*carried = 1;
	if (!target) {
		tally(TALLY_LOST);
		return NO_ROOM;
	}
	add_counters(target, &question.slot.counters);
	return DONE;
}
