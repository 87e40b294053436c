/*
 * agent.c - process 1 of the small test guest, after /init has set things up.
 *
 * What it is: the guest's end of the control channel. A host test sends shell scripts, this runs them
 * and sends back what they printed. It also turns the machine off when the power button is pressed.
 *
 * How it works:
 *   The channel is the virtio-serial port named org.virt-cdp.test.0, or, when there is none, ttyS1.
 *   host -> guest   RUN <id> <base64 of a shell script>\n
 *   guest -> host   OUT <id> <exit code> <base64 of stdout and stderr>\n
 *   guest -> host   READY\n                     once, at boot
 *   An id is up to 63 characters without blanks, chosen by the host, and only handed back. Scripts run
 *   side by side, each in a session of its own, with stdin from /dev/null and its output in a memory
 *   file, so a process a script leaves behind delays no reply. A script ended by signal N exits 128+N.
 *   Output beyond 1 MiB is cut, and a line saying so takes its place.
 *   Every line sent starts after an empty one: a host that connects in the middle of a line sees at
 *   most one damaged line, which it skips. A host should send an empty line first, for the same reason.
 *
 * Invariant: one thread and one output queue, so lines never interleave.
 *   Replies wait while no host is connected; what was half received then is dropped.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/input.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define PORT_NAME "org.virt-cdp.test.0"
#define ID_BYTES_MAX 64
#define LINE_BYTES_MAX (4 << 20)
#define OUTPUT_BYTES_MAX (1 << 20)
#define BUTTONS_MAX 8
#define RECHECK_MS 100
#define PORT_WAIT_MS 3000

struct bytes {
	char *at;
	size_t len, room;
};

struct command {
	pid_t pid;
	int output_fd;
	char id[ID_BYTES_MAX];
	struct command *next;
};

static struct bytes in, out;
static struct command *running;

static void *must(void *p)
{
	if (!p) {
		perror("agent: memory");
		abort();
	}
	return p;
}

static void append(struct bytes *b, const void *data, size_t len)
{
	if (b->len + len > b->room) {
		b->room = (b->len + len) * 2;
		b->at = must(realloc(b->at, b->room));
	}
	memcpy(b->at + b->len, data, len);
	b->len += len;
}

static void drop_front(struct bytes *b, size_t len)
{
	memmove(b->at, b->at + len, b->len - len);
	b->len -= len;
}

/* --- base64 ---------------------------------------------------------------------------------------- */

static const char DIGITS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

static void append_base64(struct bytes *b, const uint8_t *data, size_t len)
{
	for (size_t i = 0; i < len; i += 3) {
		uint32_t v = data[i] << 16;
		if (i + 1 < len)
			v |= data[i + 1] << 8;
		if (i + 2 < len)
			v |= data[i + 2];
		char four[4] = { DIGITS[v >> 18], DIGITS[v >> 12 & 63],
				 i + 1 < len ? DIGITS[v >> 6 & 63] : '=', i + 2 < len ? DIGITS[v & 63] : '=' };
		append(b, four, 4);
	}
}

/* Decodes in place; the result's length, or -1 for text that is not base64. */
static ssize_t decode_base64(char *text)
{
	size_t len = 0;
	uint32_t v = 0;
	int bits = 0;
	for (char *p = text; *p && *p != '='; p++) {
		const char *digit = strchr(DIGITS, *p);
		if (!digit)
			return -1;
		v = v << 6 | (uint32_t)(digit - DIGITS);
		bits += 6;
		if (bits >= 8) {
			bits -= 8;
			text[len++] = (char)(v >> bits);
		}
	}
	return (ssize_t)len;
}

/* --- scripts --------------------------------------------------------------------------------------- */

static void reply(const char *id, int code, const void *text, size_t len)
{
	char head[ID_BYTES_MAX + 32];
	append(&out, head, (size_t)snprintf(head, sizeof head, "\nOUT %s %d ", id, code));
	append_base64(&out, text, len);
	append(&out, "\n", 1);
}

static void reply_error(const char *id, const char *text)
{
	reply(id, 126, text, strlen(text));
}

static void run_script(const char *id, const char *script, size_t len)
{
	int output = memfd_create("output", MFD_CLOEXEC);
	int source = memfd_create("script", MFD_CLOEXEC);
	if (output < 0 || source < 0 || write(source, script, len) != (ssize_t)len) {
		reply_error(id, "agent: no memory for the script\n");
		goto failed;
	}
	pid_t pid = fork();
	if (pid < 0) {
		reply_error(id, "agent: cannot fork\n");
		goto failed;
	}
	if (pid == 0) {
		sigset_t none;
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		setsid();
		/* Out of the way of the numbers the script's descriptors get. */
		int script_fd = fcntl(source, F_DUPFD, 10);
		dup2(open("/dev/null", O_RDONLY), 0);
		dup2(output, 1);
		dup2(output, 2);
		char path[32];
		snprintf(path, sizeof path, "/proc/self/fd/%d", script_fd);
		execl("/bin/sh", "sh", path, (char *)NULL);
		_exit(127);
	}
	close(source);
	struct command *c = must(calloc(1, sizeof *c));
	c->pid = pid;
	c->output_fd = output;
	strcpy(c->id, id);
	c->next = running;
	running = c;
	return;
failed:
	if (output >= 0)
		close(output);
	if (source >= 0)
		close(source);
}

static void finish(struct command *c, int status)
{
	static const char cut[] = "\n[agent: output cut at 1 MiB]\n";
	struct stat st;
	size_t len = fstat(c->output_fd, &st) == 0 ? (size_t)st.st_size : 0;
	bool too_long = len > OUTPUT_BYTES_MAX;
	if (too_long)
		len = OUTPUT_BYTES_MAX - sizeof cut + 1;
	char *text = must(malloc(len + sizeof cut));
	ssize_t got = pread(c->output_fd, text, len, 0);
	len = got > 0 ? (size_t)got : 0;
	if (too_long) {
		memcpy(text + len, cut, sizeof cut - 1);
		len += sizeof cut - 1;
	}
	reply(c->id, WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status), text, len);
	free(text);
	close(c->output_fd);
}

static void reap(void)
{
	int status;
	pid_t pid;
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		for (struct command **at = &running; *at; at = &(*at)->next) {
			struct command *c = *at;
			if (c->pid != pid)
				continue;
			finish(c, status);
			*at = c->next;
			free(c);
			break;
		}
	}
}

/* --- the channel ----------------------------------------------------------------------------------- */

static void take_line(char *line)
{
	char id[ID_BYTES_MAX] = "";
	int script_at = 0;
	if (!*line)
		return;
	if (sscanf(line, "RUN %63s %n", id, &script_at) != 1 || script_at == 0) {
		fprintf(stderr, "agent: skipped a line that is no RUN (%zu bytes)\n", strlen(line));
		return;
	}
	ssize_t len = decode_base64(line + script_at);
	if (len < 0)
		reply_error(id, "agent: not base64\n");
	else
		run_script(id, line + script_at, (size_t)len);
}

static void take_lines(void)
{
	size_t start = 0;
	char *end;
	while ((end = memchr(in.at + start, '\n', in.len - start))) {
		*end = 0;
		if (end > in.at + start && end[-1] == '\r')
			end[-1] = 0;
		take_line(in.at + start);
		start = (size_t)(end - in.at) + 1;
	}
	if (start)
		drop_front(&in, start);
	if (in.len > LINE_BYTES_MAX) {
		fprintf(stderr, "agent: dropped a line of more than %d bytes\n", LINE_BYTES_MAX);
		in.len = 0;
	}
}

static int open_port(void)
{
	int fd = -1;
	DIR *dir = opendir("/sys/class/virtio-ports");
	struct dirent *entry;
	while (dir && fd < 0 && (entry = readdir(dir))) {
		char path[600], name[64] = "";
		snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
		FILE *f = fopen(path, "re");
		if (!f)
			continue;
		if (fgets(name, sizeof name, f) && strcspn(name, "\n") == strlen(PORT_NAME) &&
		    !strncmp(name, PORT_NAME, strlen(PORT_NAME))) {
			snprintf(path, sizeof path, "/dev/%s", entry->d_name);
			fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
		}
		fclose(f);
	}
	if (dir)
		closedir(dir);
	return fd;
}

static int open_second_serial(void)
{
	struct termios mode;
	int fd = open("/dev/ttyS1", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
	if (fd >= 0 && tcgetattr(fd, &mode) == 0) {
		cfmakeraw(&mode);
		mode.c_cflag |= CLOCAL;
		cfsetspeed(&mode, B115200);
		if (tcsetattr(fd, TCSANOW, &mode) == 0)
			return fd;
	}
	if (fd >= 0)
		close(fd);
	return -1;
}

/* Ports appear a moment after their driver is loaded; one can also be plugged in later. */
static int find_channel(int64_t waited_ms)
{
	int fd = open_port();
	if (fd < 0 && waited_ms > PORT_WAIT_MS)
		fd = open_second_serial();
	return fd;
}

/* False when the channel is gone for good (port unplugged). */
static bool read_channel(int fd)
{
	char chunk[65536];
	for (;;) {
		ssize_t n = read(fd, chunk, sizeof chunk);
		if (n > 0) {
			append(&in, chunk, (size_t)n);
			take_lines();
		} else {
			return n == 0 || errno == EAGAIN || errno == EINTR;
		}
	}
}

static bool write_channel(int fd)
{
	while (out.len) {
		ssize_t n = write(fd, out.at, out.len);
		if (n < 0)
			return errno == EAGAIN || errno == EINTR;
		drop_front(&out, (size_t)n);
	}
	return true;
}

/* --- power ----------------------------------------------------------------------------------------- */

static int open_buttons(struct pollfd *buttons)
{
	int count = 0;
	for (int i = 0; i < BUTTONS_MAX; i++) {
		char path[32];
		snprintf(path, sizeof path, "/dev/input/event%d", i);
		int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
		if (fd >= 0)
			buttons[count++] = (struct pollfd){ .fd = fd, .events = POLLIN };
	}
	return count;
}

static bool power_pressed(int fd)
{
	struct input_event e;
	bool pressed = false;
	while (read(fd, &e, sizeof e) == sizeof e)
		pressed |= e.type == EV_KEY && e.code == KEY_POWER && e.value == 1;
	return pressed;
}

static void power_off(void)
{
	fprintf(stderr, "agent: power button, turning off\n");
	kill(-1, SIGTERM);
	for (int i = 0; i < 20 && waitpid(-1, NULL, WNOHANG) >= 0; i++)
		usleep(50 * 1000);
	kill(-1, SIGKILL);
	sync();
	pid_t pid = fork();
	if (pid == 0) {
		execl("/bin/umount", "umount", "-a", "-r", (char *)NULL);
		_exit(127);
	}
	waitpid(pid, NULL, 0);
	reboot(RB_POWER_OFF);
}

/* --- main ------------------------------------------------------------------------------------------ */

static int64_t now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

int main(void)
{
	sigset_t children;
	sigemptyset(&children);
	sigaddset(&children, SIGCHLD);
	sigprocmask(SIG_BLOCK, &children, NULL);
	signal(SIGPIPE, SIG_IGN);

	struct pollfd polled[2 + BUTTONS_MAX];
	polled[0] = (struct pollfd){ .fd = signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK), .events = POLLIN };
	int buttons = open_buttons(polled + 2);
	int channel = -1;
	bool connected = false;
	int64_t started_ms = now_ms();
	append(&out, "\nREADY\n", 7);

	for (;;) {
		if (channel < 0) {
			channel = find_channel(now_ms() - started_ms);
			connected = channel >= 0;
		}
		/* A port without a host reports POLLHUP at once for ever: look at it now and then instead. */
		polled[1] = (struct pollfd){ .fd = connected ? channel : -1, .events = POLLIN | (out.len ? POLLOUT : 0) };
		int ready = poll(polled, 2 + (nfds_t)buttons, connected ? -1 : RECHECK_MS);
		if (ready < 0 && errno != EINTR)
			perror("agent: poll");
		if (polled[0].revents) {
			struct signalfd_siginfo info;
			while (read(polled[0].fd, &info, sizeof info) > 0)
				;
			reap();
		}
		for (int i = 0; i < buttons; i++)
			if (polled[2 + i].revents && power_pressed(polled[2 + i].fd))
				power_off();
		if (channel < 0)
			continue;

		struct pollfd state = { .fd = channel, .events = POLLIN | POLLOUT };
		poll(&state, 1, 0);
		if (!read_channel(channel) || ((state.revents & POLLOUT) && !write_channel(channel))) {
			close(channel);
			channel = -1;
			connected = false;
			in.len = 0;
			continue;
		}
		bool was_connected = connected;
		connected = !(state.revents & POLLHUP);
		if (was_connected && !connected)
			in.len = 0;
	}
}
