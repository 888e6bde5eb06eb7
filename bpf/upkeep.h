/* SPDX-License-Identifier: GPL-2.0-only */
/* What user space asks upkeep.c, and what it is answered. */
#ifndef NODEAGENT_UPKEEP_H
#define NODEAGENT_UPKEEP_H

#include "flow.h"

#define QUESTION_AT 14
#define FILLED 512           /* positions that one run of fill() adds */

struct question {
	__u32 position;
	__u32 generation;        /* evict, release: whose slot is meant */
	struct flow_slot slot;   /* release: the key to fold into, pod 0 for none; carry: what was counted; reserve: the key */
};

enum answer {
	DONE = 0,
	DONE_BEFORE = 1,         /* the slot has changed hands meanwhile: nothing is left to do */
	TAKEN = 2,               /* a reserved slot is another pod's: its number was given out too early */
	NO_ROOM = 3,             /* nothing was changed: no slot is free, and the pod has no reserved one */
	NOT_UNDERSTOOD = 4,      /* too short, or no such position */
};

#endif
