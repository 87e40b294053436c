/*
 * rows.c - a database in miniature: rows whose order and wholeness can be checked afterwards.
 *
 * rows DIR1[,DIR2...] [--interval-ms 100] [--count N]
 *   Appends a row to DIR/rows.log in every directory at each interval, until SIGTERM or N rows: DIR1's
 *   row, fsync, then DIR2's row, fsync, and so on. All directories get the same row.
 *   A restart goes on after the last whole row, cuts a torn tail, and first gives a directory that is
 *   one row behind its missing row.
 * rows --check DIR1[,DIR2...]
 *   Prints for each directory: DIR rows=N first_ns=T last_ns=T torn=N badcrc=N gaps=N
 *   Exits 1 if a tail is torn, a CRC is bad, a sequence number is missing, a directory is ahead of one
 *   named before it, one is more than a row behind the first, or their rows differ; 2 if it cannot read.
 *
 * A row is 128 bytes of text: sequence number from 1 (9 digits), blank, CLOCK_REALTIME in ns (19
 * digits), blank, 88 bytes of payload, blank, CRC-32 (zlib's) of the 119 bytes before it in hex (8), newline.
 *
 * Invariant: a row's fsync has returned before the next directory's row, or the next row, is written.
 * After a crash at any point, of this program or of the guest: DIR2's last row is DIR1's last or the one
 * before it, and every row whose fsync returned is there.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define ROW_BYTES 128
#define CRC_AT 119 /* what the CRC covers ends here; its digits follow */
#define PAYLOAD_AT 30
#define DIRS_MAX 8
#define NS_PER_S 1000000000LL

struct table {
	const char *dir;
	char path[4096];
	int fd;
	uint64_t rows;
	char last[ROW_BYTES + 1];
};

static struct table tables[DIRS_MAX];
static int table_count;
static volatile sig_atomic_t stopping;

static void stop(int signal_number)
{
	(void)signal_number;
	stopping = 1;
}

static void fail(const char *what, const char *path)
{
	fprintf(stderr, "rows: %s %s: %s\n", what, path, strerror(errno));
	exit(2);
}

static uint32_t crc32(const char *data, size_t len)
{
	uint32_t crc = ~0u;
	for (size_t i = 0; i < len; i++) {
		crc ^= (uint8_t)data[i];
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
	}
	return ~crc;
}

static void make_row(char *row, uint64_t number, int64_t ns)
{
	snprintf(row, ROW_BYTES + 1, "%09llu %019lld ", (unsigned long long)number, (long long)ns);
	for (int i = PAYLOAD_AT; i < CRC_AT - 1; i++)
		row[i] = (char)('a' + (number + (uint64_t)i) % 26);
	row[CRC_AT - 1] = ' ';
	snprintf(row + CRC_AT, ROW_BYTES + 1 - CRC_AT, "%08x\n", crc32(row, CRC_AT));
}

static bool whole(const char *row)
{
	char digits[10];
	snprintf(digits, sizeof digits, "%08x\n", crc32(row, CRC_AT));
	return !memcmp(row + CRC_AT, digits, 9);
}

static uint64_t row_number(const char *row) { return strtoull(row, NULL, 10); }
static int64_t row_ns(const char *row) { return strtoll(row + 10, NULL, 10); }

static int64_t clock_ns(clockid_t clock)
{
	struct timespec t;
	clock_gettime(clock, &t);
	return t.tv_sec * NS_PER_S + t.tv_nsec;
}

static void open_tables(char *dirs, int flags)
{
	for (char *dir = strtok(dirs, ","); dir; dir = strtok(NULL, ",")) {
		if (table_count == DIRS_MAX) {
			fprintf(stderr, "rows: at most %d directories\n", DIRS_MAX);
			exit(2);
		}
		struct table *t = &tables[table_count++];
		t->dir = dir;
		snprintf(t->path, sizeof t->path, "%s/rows.log", dir);
		t->fd = open(t->path, flags | O_CLOEXEC, 0644);
		if (t->fd < 0)
			fail("cannot open", t->path);
	}
}

/* --- writing --------------------------------------------------------------------------------------- */

static void put_row(struct table *t, const char *row)
{
	if (pwrite(t->fd, row, ROW_BYTES, (off_t)(t->rows * ROW_BYTES)) != ROW_BYTES)
		fail("cannot write", t->path);
	if (fsync(t->fd))
		fail("cannot sync", t->path);
	t->rows++;
	memcpy(t->last, row, ROW_BYTES);
}

/* Makes the file's own name durable too, or a crash could take the whole table away. */
static void sync_dir(const char *dir)
{
	int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || fsync(fd))
		fail("cannot sync", dir);
	close(fd);
}

static void resume_table(struct table *t)
{
	struct stat st;
	if (fstat(t->fd, &st))
		fail("cannot stat", t->path);
	t->rows = (uint64_t)st.st_size / ROW_BYTES;
	while (t->rows) {
		if (pread(t->fd, t->last, ROW_BYTES, (off_t)((t->rows - 1) * ROW_BYTES)) != ROW_BYTES)
			fail("cannot read", t->path);
		if (whole(t->last))
			break;
		t->rows--;
	}
	if (t->rows && row_number(t->last) != t->rows) {
		fprintf(stderr, "rows: %s: row %llu has the number %llu\n", t->path, (unsigned long long)t->rows,
			(unsigned long long)row_number(t->last));
		exit(2);
	}
	if ((off_t)(t->rows * ROW_BYTES) != st.st_size) {
		fprintf(stderr, "rows: %s: cut a torn tail after row %llu\n", t->path, (unsigned long long)t->rows);
		if (ftruncate(t->fd, (off_t)(t->rows * ROW_BYTES)))
			fail("cannot cut", t->path);
	}
	sync_dir(t->dir);
}

static void level_tables(void)
{
	struct table *first = &tables[0];
	for (int i = 1; i < table_count; i++) {
		struct table *t = &tables[i];
		if (t->rows + 1 == first->rows)
			put_row(t, first->last);
		if (t->rows != first->rows) {
			fprintf(stderr, "rows: %s has %llu rows, %s has %llu\n", t->path, (unsigned long long)t->rows,
				first->path, (unsigned long long)first->rows);
			exit(2);
		}
	}
}

static void append_rows(int64_t interval_ns, uint64_t count)
{
	signal(SIGTERM, stop);
	signal(SIGINT, stop);
	int64_t next = clock_ns(CLOCK_MONOTONIC);
	for (uint64_t done = 0; !stopping && (!count || done < count); done++) {
		char row[ROW_BYTES + 1];
		make_row(row, tables[0].rows + 1, clock_ns(CLOCK_REALTIME));
		for (int i = 0; i < table_count; i++)
			put_row(&tables[i], row);
		int64_t now = clock_ns(CLOCK_MONOTONIC);
		next += interval_ns;
		if (next < now)
			next = now; /* a slow disk is not answered with a burst */
		struct timespec until = { .tv_sec = next / NS_PER_S, .tv_nsec = next % NS_PER_S };
		while (!stopping && clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
			;
	}
}

/* --- checking -------------------------------------------------------------------------------------- */

static bool check_table(struct table *t)
{
	FILE *f = fdopen(t->fd, "r");
	char row[ROW_BYTES + 1] = "";
	uint64_t bad_crc = 0, gaps = 0, expected = 1;
	int64_t first_ns = 0, last_ns = 0;
	size_t got;
	while (f && (got = fread(row, 1, ROW_BYTES, f)) == ROW_BYTES) {
		t->rows++;
		if (!whole(row)) {
			bad_crc++;
			expected++;
			continue;
		}
		gaps += row_number(row) != expected;
		expected = row_number(row) + 1;
		last_ns = row_ns(row);
		if (!first_ns)
			first_ns = last_ns;
		memcpy(t->last, row, ROW_BYTES);
	}
	if (!f || ferror(f))
		fail("cannot read", t->path);
	int torn = got > 0;
	printf("%s rows=%llu first_ns=%lld last_ns=%lld torn=%d badcrc=%llu gaps=%llu\n", t->dir, (unsigned long long)t->rows,
	       (long long)first_ns, (long long)last_ns, torn, (unsigned long long)bad_crc, (unsigned long long)gaps);
	return !torn && !bad_crc && !gaps;
}

/* Rows that two tables both have must be the same bytes; t must have the first's rows, or all but the last. */
static bool agrees(const struct table *first, const struct table *before, const struct table *t)
{
	if (t->rows > before->rows || t->rows + 1 < first->rows) {
		printf("%s has %llu rows, %s has %llu: out of order\n", t->dir, (unsigned long long)t->rows, before->dir,
		       (unsigned long long)before->rows);
		return false;
	}
	for (uint64_t i = 0; i < t->rows; i++) {
		char a[ROW_BYTES], b[ROW_BYTES];
		off_t at = (off_t)(i * ROW_BYTES);
		if (pread(first->fd, a, ROW_BYTES, at) != ROW_BYTES || pread(t->fd, b, ROW_BYTES, at) != ROW_BYTES)
			fail("cannot read", t->path);
		if (memcmp(a, b, ROW_BYTES)) {
			printf("%s differs from %s at row %llu\n", t->dir, first->dir, (unsigned long long)i + 1);
			return false;
		}
	}
	return true;
}

static int check_tables(void)
{
	bool good = true;
	for (int i = 0; i < table_count; i++)
		good &= check_table(&tables[i]);
	for (int i = 1; i < table_count; i++)
		good &= agrees(&tables[0], &tables[i - 1], &tables[i]);
	return good ? 0 : 1;
}

/* --- main ------------------------------------------------------------------------------------------ */

static int usage(void)
{
	fprintf(stderr, "usage: rows DIR1[,DIR2...] [--interval-ms 100] [--count N]\n       rows --check DIR1[,DIR2...]\n");
	return 2;
}

int main(int argc, char **argv)
{
	char *dirs = NULL;
	bool checking = false;
	int64_t interval_ms = 100;
	uint64_t count = 0;
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--check"))
			checking = true;
		else if (!strcmp(argv[i], "--interval-ms") && i + 1 < argc)
			interval_ms = atoll(argv[++i]);
		else if (!strcmp(argv[i], "--count") && i + 1 < argc)
			count = strtoull(argv[++i], NULL, 10);
		else if (argv[i][0] != '-' && !dirs)
			dirs = argv[i];
		else
			return usage();
	}
	if (!dirs || interval_ms < 0)
		return usage();
	if (checking) {
		open_tables(dirs, O_RDONLY);
		return check_tables();
	}
	open_tables(dirs, O_RDWR | O_CREAT);
	for (int i = 0; i < table_count; i++)
		resume_table(&tables[i]);
	level_tables();
	append_rows(interval_ms * 1000000, count);
	return 0;
}
