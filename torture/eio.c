/* Preloaded into the daemon: while the file FLAG is there, writing to files below the directory
 * BELOW, and syncing them, fails with EIO. Both names are given to the compiler. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int broken(int fd)
{
    char link[64], path[PATH_MAX];
    ssize_t length;
    int before = errno, is_below;

    if (access(FLAG, F_OK) != 0) {
        errno = before;
        return 0;
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 2);
    if (length < 0)
        length = 0;
    /* The directory itself is below itself, too. */
    path[length] = '/';
    path[length + 1] = '\0';
    is_below = strncmp(path, BELOW, strlen(BELOW)) == 0;
    errno = is_below ? EIO : before;
    return is_below;
}

#define FAILING(type, name, parameters, arguments)              \
    type name parameters                                        \
    {                                                           \
        static type (*real) parameters;                         \
        if (broken(fd))                                         \
            return -1;                                          \
        if (!real)                                              \
            *(void **)&real = dlsym(RTLD_NEXT, #name);          \
        return real arguments;                                  \
    }

FAILING(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size))
FAILING(ssize_t, writev, (int fd, const struct iovec *parts, int count), (fd, parts, count))
FAILING(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
FAILING(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
FAILING(int, fsync, (int fd), (fd))
FAILING(int, fdatasync, (int fd), (fd))
FAILING(int, ftruncate, (int fd, off_t size), (fd, size))
FAILING(int, ftruncate64, (int fd, off64_t size), (fd, size))
