// SPDX-License-Identifier: Apache-2.0
/* A container's first millisecond: dial ADDRESS:PORT at once, and again until somebody refuses; say how it went.
 *
 *     first ADDRESS PORT NAME FILE
 *
 * Each connection that is accepted carries NAME, and waits for the other side to end it.  FILE gets one line:
 * connections that were accepted, bytes sent, microseconds from the start to the first that was not, and the error
 * of that one.  Then it waits.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static long microseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000L + now.tv_nsec / 1000;
}

/* Say whether somebody accepted, and how much he was told, else why not. */
static int dial(const struct sockaddr_in *whom, const char *name, long *sent, int *why)
{
	char answer[16];
	int sock = socket(AF_INET, SOCK_STREAM, 0);

	if (connect(sock, (const struct sockaddr *)whom, sizeof(*whom))) {
		*why = errno;
		close(sock);
		return 0;
	}
	*sent += write(sock, name, strlen(name));
	shutdown(sock, SHUT_WR);
	while (read(sock, answer, sizeof(answer)) > 0)
		;
	close(sock);
	return 1;
}

int main(int argc, char **argv)
{
	long began = microseconds(), sent = 0, accepted = 0;
	struct sockaddr_in whom = { .sin_family = AF_INET };
	int why = 0;
	char unfinished[512];
	FILE *file;

	if (argc != 5 || inet_pton(AF_INET, argv[1], &whom.sin_addr) != 1)
		return 2;
	whom.sin_port = htons(atoi(argv[2]));
	while (dial(&whom, argv[3], &sent, &why)) {
		accepted++;
		usleep(1000);
	}
	snprintf(unfinished, sizeof(unfinished), "%s.new", argv[4]);
	file = fopen(unfinished, "w");
	if (!file)
		return 3;
	fprintf(file, "%ld %ld %ld %d\n", accepted, sent, microseconds() - began, why);
	fclose(file);
	if (rename(unfinished, argv[4]))
		return 3;
	pause();
	return 0;
}
