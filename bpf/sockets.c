// SPDX-License-Identifier: GPL-2.0-only
/* What egress cannot see for itself: who made a socket, who dialled whom, and to whom a datagram was addressed. */
#include "maps.h"

#define ALLOW 1

/* cgroup/sock_create: a process made an AF_INET or AF_INET6 socket.  Not called for the kernel's own sockets, nor for
 * those that accept() or MPTCP make.
 */
int sock_create(struct bpf_sock *sk)
{
	struct socket_state *state = state_made_for(sk);

	if (!state) {
		tally(TALLY_NO_STATE);
		return ALLOW;
	}
	state->born = 1;
	state->gid = bpf_get_current_uid_gid() >> 32;
	state->netns = bpf_get_netns_cookie(sk);
	return ALLOW;
}

/* sockops, of which one operation matters: the handshake of a connection that somebody else began is complete. */
int sockops(struct bpf_sock_ops *operation)
{
	struct bpf_sock *sk = operation->sk;
	struct socket_state *state;

	if (operation->op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB || !sk)
		return ALLOW;
	state = state_made_for(sk);
	if (state)
		state->direction = PASSIVE;
	else
		tally(TALLY_NO_STATE);
	return ALLOW;
}

/* Two threads that send on one unconnected socket at the same moment may mix their destinations up. */
static __always_inline void note_dialled(struct bpf_sock_addr *context, __u32 first, __u32 second, __u32 third,
					 __u32 fourth)
{
	struct bpf_sock *sk = context->sk;
	struct socket_state *state;

	if (!sk)
		return;
	state = state_made_for(sk);
	if (!state) {
		tally(TALLY_NO_STATE);
		return;
	}
	state->dialled[0] = first;
	state->dialled[1] = second;
	state->dialled[2] = third;
	state->dialled[3] = fourth;
	state->dialled_port = context->user_port;
}

/* cgroup/sendmsg4, cgroup/sendmsg6: a datagram has an address of its own; before routing, before nat.  IPv6 sockets
 * that send to v4-mapped addresses come by sendmsg4.
 */
int sendmsg4(struct bpf_sock_addr *context)
{
	note_dialled(context, context->user_ip4, 0, 0, 0);
	return ALLOW;
}

int sendmsg6(struct bpf_sock_addr *context)
{
	note_dialled(context, context->user_ip6[0], context->user_ip6[1], context->user_ip6[2], context->user_ip6[3]);
	return ALLOW;
}
