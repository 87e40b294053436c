/*
 * wload.c - a plain write load: blocks at random places of a file or a disk, one after the other.
 *
 * wload FILE_OR_DEV [--seconds 10] [--bs 4096] [--fsync-every K] [--size-mib 64]
 *   Writes past the page cache (O_DIRECT) where the file system can, else with fdatasync after every write.
 *   --fsync-every K adds an fdatasync after every K writes. A file smaller than --size-mib is filled up
 *   first, so that the load overwrites and does not allocate; of a disk the first --size-mib are used.
 *   Prints one line: wload writes=N seconds=S writes_per_s=N mib_per_s=N avg_us=N p99_us=N max_us=N
 *   p99_us is the upper edge of its bucket, at most an eighth too high.
 *
 * It overwrites what it is given.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000LL
#define BUCKETS 512 /* 8 to each power of two of microseconds */

static int64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * NS_PER_S + t.tv_nsec;
}

static void fail(const char *what, const char *path)
{
	fprintf(stderr, "wload: %s %s: %s\n", what, path, strerror(errno));
	exit(1);
}

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static int bucket_of(uint64_t us)
{
	if (us < 8)
		return (int)us;
	int power = 63 - __builtin_clzll(us);
	return (power - 2) * 8 + (int)(us >> (power - 3) & 7);
}

static uint64_t bucket_end_us(int bucket)
{
	if (bucket < 8)
		return (uint64_t)bucket + 1;
	return (uint64_t)(8 + bucket % 8 + 1) << (bucket / 8 - 1);
}

/* Fills a file up to `bytes`; returns how many bytes of it or of a disk may be used. */
static uint64_t prepare(const char *path, uint64_t bytes, size_t bs)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	struct stat st;
	if (fd < 0 || fstat(fd, &st))
		fail("cannot open", path);
	if (!S_ISREG(st.st_mode)) {
		off_t end = lseek(fd, 0, SEEK_END);
		if (end < 0)
			fail("cannot size", path);
		close(fd);
		return (uint64_t)end < bytes ? (uint64_t)end : bytes;
	}
	char *block = calloc(1, bs);
	for (uint64_t at = (uint64_t)st.st_size / bs * bs; at < bytes; at += bs)
		if (pwrite(fd, block, bs, (off_t)at) != (ssize_t)bs)
			fail("cannot fill", path);
	if (fsync(fd))
		fail("cannot sync", path);
	free(block);
	close(fd);
	return bytes;
}

int main(int argc, char **argv)
{
	const char *path = NULL;
	double seconds = 10;
	size_t bs = 4096;
	uint64_t sync_every = 0, size_mib = 64;
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--seconds") && i + 1 < argc)
			seconds = atof(argv[++i]);
		else if (!strcmp(argv[i], "--bs") && i + 1 < argc)
			bs = strtoul(argv[++i], NULL, 10);
		else if (!strcmp(argv[i], "--fsync-every") && i + 1 < argc)
			sync_every = strtoull(argv[++i], NULL, 10);
		else if (!strcmp(argv[i], "--size-mib") && i + 1 < argc)
			size_mib = strtoull(argv[++i], NULL, 10);
		else if (argv[i][0] != '-' && !path)
			path = argv[i];
		else
			path = NULL, i = argc;
	}
	if (!path || bs < 512 || bs % 512 || (size_mib << 20) < bs) {
		fprintf(stderr, "usage: wload FILE_OR_DEV [--seconds 10] [--bs 4096] [--fsync-every K] [--size-mib 64]\n");
		return 2;
	}
	uint64_t blocks = prepare(path, size_mib << 20, bs) / bs;
	int fd = open(path, O_WRONLY | O_DIRECT | O_CLOEXEC);
	bool direct = fd >= 0;
	if (!direct)
		fd = open(path, O_WRONLY | O_CLOEXEC);
	char *block;
	if (fd < 0 || !blocks || posix_memalign((void **)&block, 4096, bs))
		fail("cannot open", path);

	static uint64_t histogram[BUCKETS];
	uint64_t writes = 0, max_us = 0, random = (uint64_t)now_ns() | 1;
	int64_t start = now_ns(), now = start, end = start + (int64_t)(seconds * NS_PER_S);
	while (now < end) {
		for (size_t at = 0; at < bs; at += 8)
			memcpy(block + at, (uint64_t[]){ next_random(&random) }, 8);
		int64_t before = now_ns();
		if (pwrite(fd, block, bs, (off_t)(next_random(&random) % blocks * bs)) != (ssize_t)bs)
			fail("cannot write", path);
		writes++;
		if ((!direct || (sync_every && writes % sync_every == 0)) && fdatasync(fd))
			fail("cannot sync", path);
		now = now_ns();
		uint64_t us = (uint64_t)(now - before) / 1000;
		histogram[bucket_of(us)]++;
		if (us > max_us)
			max_us = us;
	}
	double took = (double)(now - start) / NS_PER_S;
	uint64_t below = 0;
	int bucket = 0;
	while (bucket < BUCKETS - 1 && (below += histogram[bucket]) * 100 < writes * 99)
		bucket++;
	printf("wload writes=%llu seconds=%.2f writes_per_s=%.0f mib_per_s=%.1f avg_us=%.0f p99_us=%llu max_us=%llu\n",
	       (unsigned long long)writes, took, (double)writes / took, (double)writes * (double)bs / took / (1 << 20),
	       took * 1e6 / (double)(writes ? writes : 1), (unsigned long long)bucket_end_us(bucket), (unsigned long long)max_us);
	return 0;
}
