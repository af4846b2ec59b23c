// Preloaded into a process (LD_PRELOAD), it counts the bytes of all blocks from 64 KiB on that are allocated, now and at most: those of
// tensors, and little else. A program in Python asks by ctypes; any other gets the peak in the file that COUNT_MEMORY names, at its end.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static _Atomic long long now, most;

static long long size_of(void *p) {
  long long size = p ? (long long)malloc_usable_size(p) : 0;
  return size < 65536 ? 0 : size;
}

static void *add(void *p) {
  long long size = size_of(p);
  if (size) {
    long long n = atomic_fetch_add(&now, size) + size;
    long long m = atomic_load(&most);
    while (n > m && !atomic_compare_exchange_weak(&most, &m, n)) {
    }
  }
  return p;
}

static void take(void *p) { atomic_fetch_sub(&now, size_of(p)); }

void *malloc(size_t n) { return add(__libc_malloc(n)); }
void *calloc(size_t n, size_t size) { return add(__libc_calloc(n, size)); }
void *memalign(size_t align, size_t n) { return add(__libc_memalign(align, n)); }
void *aligned_alloc(size_t align, size_t n) { return add(__libc_memalign(align, n)); }

void *realloc(void *p, size_t n) {
  take(p);
  void *made = __libc_realloc(p, n);
  if (!made && n) add(p);
  return add(made);
}

int posix_memalign(void **p, size_t align, size_t n) {
  *p = add(__libc_memalign(align, n));
  return *p ? 0 : ENOMEM;
}

void free(void *p) {
  take(p);
  __libc_free(p);
}

long long memory_now(void) { return now; }
long long memory_peak(void) { return most; }
void memory_reset(void) { atomic_store(&most, atomic_load(&now)); }

__attribute__((destructor)) static void tell(void) {
  const char *path = getenv("COUNT_MEMORY");
  FILE *file = path ? fopen(path, "w") : NULL;
  if (!file) return;
  fprintf(file, "%lld\n", (long long)most);
  fclose(file);
}
