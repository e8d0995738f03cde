/*
 * What the three programs share: a readiness loop (epoll on Linux, kqueue on macOS and the BSDs),
 * the monotonic clock, growing buffers, loopback sockets and percentiles.
 *
 * Everything is `static inline`: each program is one file plus this one, so that `cc -O2` on a
 * single source is the whole build.
 */
#ifndef BENCH_LOOP_H
#define BENCH_LOOP_H

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/epoll.h>
#include <sys/timerfd.h>
#else
#include <sys/event.h>
#endif

typedef long long ns_t;
#define SECOND 1000000000LL
#define MOST_EVENTS 512

static inline void die(const char *what) {
    perror(what);
    exit(1);
}

static inline void *checked(void *memory) {
    if (!memory) die("memory");
    return memory;
}

static inline ns_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

/* ---- growing buffers: always followed by a NUL, so that string functions may read them ---- */

typedef struct {
    char *data;
    size_t length, capacity;
} buffer;

static inline void buffer_reserve(buffer *b, size_t more) {
    if (b->length + more + 1 <= b->capacity) return;
    b->capacity = (b->length + more + 1) * 2;
    b->data = checked(realloc(b->data, b->capacity));
}

static inline void buffer_add(buffer *b, const void *bytes, size_t count) {
    buffer_reserve(b, count);
    memcpy(b->data + b->length, bytes, count);
    b->length += count;
    b->data[b->length] = 0;
}

static inline void buffer_drop(buffer *b, size_t count) {
    memmove(b->data, b->data + count, b->length - count);
    b->length -= count;
    b->data[b->length] = 0;
}

/* Read all that a socket holds. 1: more may come. 0: the peer has closed, or the socket failed. */
static inline int buffer_receive(buffer *b, int fd) {
    for (;;) {
        buffer_reserve(b, 65536);
        size_t room = b->capacity - b->length - 1;
        ssize_t got = recv(fd, b->data + b->length, room, 0);
        if (got > 0) {
            b->length += (size_t)got;
            b->data[b->length] = 0;
            if ((size_t)got < room) return 1; /* drained: the loop is level-triggered */
        } else if (got < 0 && errno == EINTR) {
            continue;
        } else {
            return got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
        }
    }
}

/* ---- the loop ---- */

typedef struct {
    void *owner;   /* as given to loop_add */
    int can_write; /* else it can be read, or has failed, which reading shows */
    int can_read;
} ready;

#ifdef __linux__

typedef struct {
    int fd, timer;
} loop;

static inline loop loop_make(void) {
    loop l = {epoll_create1(0), timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)};
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL};
    if (l.fd < 0 || l.timer < 0 || epoll_ctl(l.fd, EPOLL_CTL_ADD, l.timer, &e)) die("epoll");
    return l;
}

static inline void loop_set(loop *l, int operation, int fd, void *owner, int wants_write) {
    struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = owner};
    if (wants_write) e.events |= EPOLLOUT;
    epoll_ctl(l->fd, operation, fd, &e);
}

static inline void loop_add(loop *l, int fd, void *owner, int wants_write) {
    loop_set(l, EPOLL_CTL_ADD, fd, owner, wants_write);
}

static inline void loop_change(loop *l, int fd, void *owner, int wants_write) {
    loop_set(l, EPOLL_CTL_MOD, fd, owner, wants_write);
}

/* Wait at most `timeout` ns. epoll counts in milliseconds, a timer descriptor does not. */
static inline int loop_wait(loop *l, ready *found, ns_t timeout) {
    struct epoll_event events[MOST_EVENTS];
    if (timeout > 0) {
        struct itimerspec at = {.it_value = {timeout / SECOND, timeout % SECOND}};
        timerfd_settime(l->timer, 0, &at, NULL);
    }
    int count = epoll_wait(l->fd, events, MOST_EVENTS, timeout > 0 ? -1 : 0), kept = 0;
    for (int i = 0; i < count; i++) {
        if (!events[i].data.ptr) {
            unsigned long long expirations;
            if (read(l->timer, &expirations, sizeof expirations) < 0) continue;
            continue;
        }
        found[kept].owner = events[i].data.ptr;
        found[kept].can_write = !!(events[i].events & EPOLLOUT);
        found[kept++].can_read = !!(events[i].events & ~(unsigned)EPOLLOUT);
    }
    return kept;
}

#else /* kqueue */

typedef struct {
    int fd;
} loop;

static inline loop loop_make(void) {
    loop l = {kqueue()};
    if (l.fd < 0) die("kqueue");
    return l;
}

static inline void loop_change(loop *l, int fd, void *owner, int wants_write) {
    struct kevent e;
    EV_SET(&e, fd, EVFILT_WRITE, wants_write ? EV_ADD : EV_DELETE, 0, 0, owner);
    kevent(l->fd, &e, 1, NULL, 0, NULL); /* deleting what is not there is no harm */
}

static inline void loop_add(loop *l, int fd, void *owner, int wants_write) {
    struct kevent e;
    EV_SET(&e, fd, EVFILT_READ, EV_ADD, 0, 0, owner);
    kevent(l->fd, &e, 1, NULL, 0, NULL);
    if (wants_write) loop_change(l, fd, owner, 1);
}

static inline int loop_wait(loop *l, ready *found, ns_t timeout) {
    struct kevent events[MOST_EVENTS];
    struct timespec at = {timeout / SECOND, timeout % SECOND};
    if (timeout < 0) at = (struct timespec){0, 0};
    int count = kevent(l->fd, NULL, 0, events, MOST_EVENTS, &at);
    for (int i = 0; i < count; i++) {
        found[i].owner = events[i].udata;
        found[i].can_write = events[i].filter == EVFILT_WRITE;
        found[i].can_read = !found[i].can_write;
    }
    return count < 0 ? 0 : count;
}

#endif

/* ---- sockets ---- */

static inline struct sockaddr_in loopback(int port) {
    struct sockaddr_in a;
    memset(&a, 0, sizeof a);
    a.sin_family = AF_INET;
    a.sin_port = htons((unsigned short)port);
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return a;
}

static inline void make_quick(int fd) {
    int one = 1;
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

/* Begin to connect; -1 if there are no more descriptors. */
static inline int connect_loopback(int port) {
    struct sockaddr_in a = loopback(port);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0) return -1;
    make_quick(fd);
    if (connect(fd, (struct sockaddr *)&a, sizeof a) && errno != EINPROGRESS) {
        close(fd);
        return -1;
    }
    return fd;
}

/* A peer that has gone shows as an error of send(); thousands of sockets need a raised limit. */
static inline void prepare_process(void) {
    struct rlimit limit;
    signal(SIGPIPE, SIG_IGN);
    if (getrlimit(RLIMIT_NOFILE, &limit)) return;
    if (limit.rlim_cur < 8192) {
        limit.rlim_cur = limit.rlim_max < 8192 ? limit.rlim_max : 8192;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

/* ---- requests and figures ---- */

/* POST the file `body_file` to `path`; the key comes from BENCH_KEY, so that no argument shows it. */
static inline buffer build_request(int port, const char *path, const char *body_file) {
    buffer request = {0}, body = {0};
    char piece[8192];
    size_t got;
    const char *key = getenv("BENCH_KEY");
    FILE *file = fopen(body_file, "rb");
    if (!file) die(body_file);
    while ((got = fread(piece, 1, sizeof piece, file)) > 0) buffer_add(&body, piece, got);
    fclose(file);
    int length = snprintf(piece, sizeof piece,
                          "POST %s HTTP/1.1\r\nhost: 127.0.0.1:%d\r\naccept: */*\r\n"
                          "content-type: application/json\r\nauthorization: Bearer %s\r\n"
                          "content-length: %zu\r\n\r\n",
                          path, port, key ? key : "sk-bench", body.length);
    if (length < 0 || (size_t)length >= sizeof piece) {
        fprintf(stderr, "the path or the key is too long\n");
        exit(2);
    }
    buffer_add(&request, piece, (size_t)length);
    buffer_add(&request, body.data, body.length);
    free(body.data);
    return request;
}

typedef struct {
    float *at;
    size_t count, capacity;
} samples; /* microseconds */

static inline void sample_add(samples *s, ns_t duration) {
    if (s->count == s->capacity) {
        s->capacity = s->capacity ? s->capacity * 2 : 65536;
        s->at = checked(realloc(s->at, s->capacity * sizeof *s->at));
    }
    s->at[s->count++] = (float)duration / 1000.0f;
}

static inline int sample_order(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static inline void sample_sort(samples *s) {
    if (s->count) qsort(s->at, s->count, sizeof *s->at, sample_order);
}

/* The share-th quantile of sorted samples by nearest rank; -1 if there are none. */
static inline double quantile(const samples *s, double share) {
    if (!s->count) return -1;
    size_t rank = (size_t)(share * (double)s->count);
    return s->at[rank < s->count ? rank : s->count - 1];
}

#endif
