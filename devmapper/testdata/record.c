/*
 * Writes the device-mapper ioctls of a program to the file named by RECORD_TO.
 * Loaded with LD_PRELOAD; see record.sh.
 *
 * For each call: its number, the request (the header, and the payload up to its
 * last byte that is not zero), the errno, and the reply as far as it is valid.
 * Lines of 32 bytes begin with their offset; those that are all zero are left
 * out. Questions for the version, with which dmsetup begins, are left out too
 * unless RECORD_VERSION is set.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HEADER = 312, OFF_SIZE = 12 };

static uint32_t size_of(const unsigned char *b)
{
	uint32_t n;
	memcpy(&n, b + OFF_SIZE, sizeof n);
	return n;
}

static void dump(FILE *f, const char *what, const unsigned char *b, uint32_t n)
{
	fprintf(f, "%s %u\n", what, n);
	static const unsigned char zero[32];
	for (uint32_t i = 0; i < n; i += 32) {
		if (!memcmp(b + i, zero, n - i < 32 ? n - i : 32))
			continue;
		fprintf(f, "%u ", i);
		for (uint32_t j = i; j < n && j < i + 32; j++)
			fprintf(f, "%02x", b[j]);
		fputc('\n', f);
	}
}

int ioctl(int fd, unsigned long request, ...)
{
	static int (*real)(int, unsigned long, ...);
	if (!real)
		real = dlsym(RTLD_NEXT, "ioctl");
	va_list ap;
	va_start(ap, request);
	void *arg = va_arg(ap, void *);
	va_end(ap);
	const char *path = getenv("RECORD_TO");
	if ((request >> 8 & 0xff) != 0xfd || !path || (!(request & 0xff) && !getenv("RECORD_VERSION")))
		return real(fd, request, arg);

	FILE *f = fopen(path, "a");
	unsigned char *b = arg;
	uint32_t n = size_of(b);
	while (n > HEADER && b[n - 1] == 0)
		n--;
	fprintf(f, "ioctl %08lx\n", request);
	dump(f, "request", b, n);
	int rc = real(fd, request, arg), err = errno;
	fprintf(f, "errno %d\n", rc < 0 ? err : 0);
	if (rc >= 0)
		dump(f, "reply", b, size_of(b) < HEADER ? HEADER : size_of(b));
	fclose(f);
	errno = err;
	return rc;
}
