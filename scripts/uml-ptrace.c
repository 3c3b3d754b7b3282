/*
 * ptrace(2) for User-Mode Linux on processors with big register files, to be preloaded.
 *
 * UML 6.1 saves and restores a guest process's extended registers with a buffer of fixed size, made
 * for AVX-512. Reading into a short buffer is allowed. Writing is not: the host's kernel wants all of
 * its XSAVE area or fails with EFAULT (xstateregs_set in arch/x86/kernel/fpu/regset.c). On a
 * processor with AMX that area has 11008 bytes, and UML kills every process at its first
 * instruction. So: put what UML has in front of as many zeros as the host's kernel wants. Zeros are
 * right, because no process of the guest can ask for AMX.
 *
 * Newer kernels ask for the size (since 6.10), and this file goes when Debian's pinned one does.
 *
 * No header is included and nothing is linked, so that any C compiler will do.
 */

#define SYS_PTRACE 101L
#define GETREGSET 0x4204
#define SETREGSET 0x4205
#define NT_X86_XSTATE 0x202
#define EFAULT 14

struct iovec {
	unsigned char *base;
	unsigned long len;
};

extern long syscall(long number, ...);
extern int *__errno_location(void);

static unsigned char area[1 << 16];
static unsigned long area_size; /* 0 until the first EFAULT */

static long measure(long pid)
{
	struct iovec whole;
	unsigned long i;
	long r;

	whole.base = area;
	whole.len = sizeof area;
	r = syscall(SYS_PTRACE, (long)GETREGSET, pid, (long)NT_X86_XSTATE, &whole);
	if (r < 0)
		return r;
	area_size = whole.len;
	for (i = 0; i < area_size; i++)
		area[i] = 0;
	return 0;
}

static long set_xstate(long pid, struct iovec *given)
{
	struct iovec whole;
	unsigned long i;
	long r;

	if (area_size == 0) {
		r = syscall(SYS_PTRACE, (long)SETREGSET, pid, (long)NT_X86_XSTATE, given);
		if (r >= 0 || *__errno_location() != EFAULT)
			return r;
		r = measure(pid);
		if (r < 0)
			return r;
	}
	for (i = 0; i + 8 <= given->len && i + 8 <= area_size; i += 8)
		*(unsigned long *)(area + i) = *(unsigned long *)(given->base + i);
	whole.base = area;
	whole.len = area_size;
	return syscall(SYS_PTRACE, (long)SETREGSET, pid, (long)NT_X86_XSTATE, &whole);
}

long ptrace(int request, int pid, void *addr, void *data)
{
	long r, word;

	if (request == SETREGSET && (long)addr == NT_X86_XSTATE && data != 0)
		return set_xstate(pid, data);
	if (request < 1 || request > 3)
		return syscall(SYS_PTRACE, (long)request, (long)pid, addr, data);
	/* The three PEEK requests: the kernel stores the word, the C library returns it. */
	r = syscall(SYS_PTRACE, (long)request, (long)pid, addr, &word);
	if (r < 0)
		return r;
	*__errno_location() = 0;
	return word;
}
