/*
 * marks.c - writes whose order, wholeness and time can be checked on any copy of the disks.
 *
 * marks DEV1[,DEV2...] [--seconds 10] [--slots 1024] [--log FILE]
 *   Writes blocks of 4096 bytes past the page cache, one after the other: mark n (from 1) goes to disk
 *   (n - 1) % DISKS, slot ((n - 1) / DISKS) % SLOTS of it. Now and then it reads a slot back and compares.
 *   --log FILE gets a line "n ns" every 10 ms: mark n was acknowledged before that CLOCK_REALTIME.
 *   Prints one line: marks last=N max_us=N max_at_ns=T. Exits 1 when a write fails or a slot reads back wrong.
 *
 * A block is the number n (8 bytes, little endian), its complement, and then words of xorshift64* seeded with n.
 *
 * Invariant: mark n is acknowledged before mark n + 1 is sent. So any state of the disks holds, for some N, exactly
 * the newest mark of every slot among 1..N, or it is no state that the disks ever had.
 * It overwrites what it is given.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096
#define DISKS_MAX 8
#define NS_PER_S 1000000000LL
#define LOG_EVERY_NS 10000000LL

static int64_t clock_ns(clockid_t clock)
{
	struct timespec t;
	clock_gettime(clock, &t);
	return t.tv_sec * NS_PER_S + t.tv_nsec;
}

static void fail(const char *what, const char *path)
{
	fprintf(stderr, "marks: %s %s: %s\n", what, path, strerror(errno));
	exit(1);
}

static void fill(uint64_t *block, uint64_t n)
{
	uint64_t state = n;
	block[0] = n;
	block[1] = ~n;
	for (int i = 2; i < BLOCK / 8; i++) {
		state ^= state >> 12;
		state ^= state << 25;
		state ^= state >> 27;
		block[i] = state * 0x2545f4914f6cdd1dULL;
	}
}

int main(int argc, char **argv)
{
	char *list = NULL, *paths[DISKS_MAX];
	const char *log_path = NULL;
	int fds[DISKS_MAX], disks = 0;
	double seconds = 10;
	uint64_t slots = 1024;
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--seconds") && i + 1 < argc)
			seconds = atof(argv[++i]);
		else if (!strcmp(argv[i], "--slots") && i + 1 < argc)
			slots = strtoull(argv[++i], NULL, 10);
		else if (!strcmp(argv[i], "--log") && i + 1 < argc)
			log_path = argv[++i];
		else if (argv[i][0] != '-' && !list)
			list = argv[i];
		else
			list = NULL, i = argc;
	}
	if (!list || !slots) {
		fprintf(stderr, "usage: marks DEV1[,DEV2...] [--seconds 10] [--slots 1024] [--log FILE]\n");
		return 2;
	}
	for (char *path = strtok(list, ","); path && disks < DISKS_MAX; path = strtok(NULL, ",")) {
		paths[disks] = path;
		fds[disks] = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
		if (fds[disks] < 0)
			fail("cannot open", path);
		disks++;
	}
	FILE *log = log_path ? fopen(log_path, "w") : NULL;
	uint64_t *block, *back;
	if ((log_path && !log) || posix_memalign((void **)&block, BLOCK, BLOCK) ||
	    posix_memalign((void **)&back, BLOCK, BLOCK))
		fail("cannot prepare", list);

	uint64_t n = 0, max_us = 0;
	int64_t max_at = 0, logged = 0, end = clock_ns(CLOCK_MONOTONIC) + (int64_t)(seconds * NS_PER_S);
	int64_t before = clock_ns(CLOCK_MONOTONIC);
	while (before < end) {
		n++;
		int disk = (int)((n - 1) % (uint64_t)disks);
		off_t at = (off_t)((n - 1) / (uint64_t)disks % slots * BLOCK);
		fill(block, n);
		before = clock_ns(CLOCK_MONOTONIC);
		if (pwrite(fds[disk], block, BLOCK, at) != BLOCK)
			fail("cannot write", paths[disk]);
		int64_t after = clock_ns(CLOCK_MONOTONIC);
		if ((uint64_t)(after - before) / 1000 > max_us) {
			max_us = (uint64_t)(after - before) / 1000;
			max_at = clock_ns(CLOCK_REALTIME);
		}
		if (log && after - logged >= LOG_EVERY_NS) {
			fprintf(log, "%llu %lld\n", (unsigned long long)n, (long long)clock_ns(CLOCK_REALTIME));
			logged = after;
		}
		if (n % 97 == 0) {
			if (pread(fds[disk], back, BLOCK, at) != BLOCK)
				fail("cannot read", paths[disk]);
			if (memcmp(block, back, BLOCK)) {
				fprintf(stderr, "marks: mark %llu on %s reads back wrong\n", (unsigned long long)n, paths[disk]);
				return 1;
			}
		}
	}
	if (log && fclose(log))
		fail("cannot write", log_path);
	printf("marks last=%llu max_us=%llu max_at_ns=%lld\n", (unsigned long long)n, (unsigned long long)max_us,
	       (long long)max_at);
	return 0;
}
