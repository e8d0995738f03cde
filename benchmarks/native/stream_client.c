/*
 * Many streams at once: each is one request on a connection of its own, read to its end.
 *
 *   stream_client PORT PATH BODY_FILE STREAMS RAMP_MS TIMEOUT_S      (BENCH_KEY: the bearer key)
 *
 * The streams begin evenly over RAMP_MS, so that their chunks don't come in step. The stamps
 * `@<ns>@` of mock_upstream.c tell how long each chunk was under way.
 *
 * Prints one JSON line: `finished` (200, `[DONE]` seen, body complete), `failed` (anything else that
 * ended), `unfinished` (the time was over), chunks, seconds, chunks per second between the first and
 * the last chunk, and in µs: ttft (request sent to first chunk), lag (chunk made to chunk read).
 */
#define _GNU_SOURCE
#include "loop.h"

#define TAIL 24 /* more than a final `[DONE]` with its framing needs to be seen across two reads */

typedef struct {
    int fd, wants_write, is_over;
    size_t sent;
    int has_head, is_chunked, is_done;
    int status;
    long chunks;
    ns_t began;
    buffer in; /* what of the stream could not be judged yet */
} stream;

static loop events;
static buffer request;
static samples lags, ttfts;
static long finished, failed, over;
static long long chunks;
static ns_t first_chunk, last_chunk;

static void end(stream *s, int is_complete) {
    if (s->is_over) return;
    s->is_over = 1;
    over++;
    if (is_complete && s->status == 200 && s->is_done && s->chunks)
        finished++;
    else
        failed++;
    if (s->fd >= 0) close(s->fd);
    s->fd = -1;
    free(s->in.data);
}

static void send_rest(stream *s) {
    while (s->sent < request.length) {
        ssize_t n = send(s->fd, request.data + s->sent, request.length - s->sent, 0);
        if (n < 0) return; /* writable later; a failure shows when reading */
        s->sent += (size_t)n;
    }
    if (s->wants_write) loop_change(&events, s->fd, s, s->wants_write = 0);
}

static void begin(stream *s, int port) {
    s->began = now_ns();
    if ((s->fd = connect_loopback(port)) < 0) {
        end(s, 0);
        return;
    }
    s->wants_write = 1;
    loop_add(&events, s->fd, s, 1);
}

static void take_stamp(stream *s, const char *digits, ns_t now) {
    ns_t made = strtoll(digits, NULL, 10);
    if (made <= 0) return;
    sample_add(&lags, now - made);
    if (!s->chunks) sample_add(&ttfts, now - s->began);
    if (!first_chunk) first_chunk = now;
    last_chunk = now;
    s->chunks++;
    chunks++;
}

static int take_head(stream *s) {
    char *end_of_head = strstr(s->in.data, "\r\n\r\n");
    if (!end_of_head) return 0;
    *end_of_head = 0;
    s->status = s->in.length > 12 ? atoi(s->in.data + 9) : 0;
    s->is_chunked = !!strcasestr(s->in.data, "\r\ntransfer-encoding: chunked");
    s->has_head = 1;
    buffer_drop(&s->in, (size_t)(end_of_head - s->in.data) + 4);
    return 1;
}

/* Take all stamps; keep an unfinished one, or the tail in which the stream's end may begin. */
static void take_body(stream *s, ns_t now) {
    char *at = s->in.data, *stop = s->in.data + s->in.length, *open, *close_;
    while ((open = memchr(at, '@', (size_t)(stop - at)))) {
        if (!(close_ = memchr(open + 1, '@', (size_t)(stop - open - 1)))) break;
        take_stamp(s, open + 1, now);
        at = close_ + 1;
    }
    if (memmem(s->in.data, s->in.length, "[DONE]", 6)) s->is_done = 1;
    size_t rest = (size_t)(stop - (open ? open : at));
    if (!open && rest > TAIL) rest = TAIL;
    buffer_drop(&s->in, s->in.length - rest);
}

static void take_input(stream *s) {
    int is_open = buffer_receive(&s->in, s->fd);
    ns_t now = now_ns();
    if (s->in.length && (s->has_head || take_head(s))) {
        take_body(s, now);
        if (s->status != 200) {
            end(s, 0);
            return;
        }
        int is_last = s->in.length >= 5 && !memcmp(s->in.data + s->in.length - 5, "0\r\n\r\n", 5);
        if (s->is_chunked && s->is_done && is_last) {
            end(s, 1);
            return;
        }
    }
    if (!is_open) end(s, !s->is_chunked); /* without chunked coding the close ends the body */
}

static void run(stream *streams, int count, int port, ns_t ramp, ns_t timeout) {
    ready found[MOST_EVENTS];
    ns_t start = now_ns();
    int begun = 0;
    while (over < count && now_ns() - start < timeout) {
        while (begun < count && now_ns() - start >= ramp * begun / count)
            begin(&streams[begun++], port);
        int ready_count = loop_wait(&events, found, begun < count ? SECOND / 1000 : SECOND / 10);
        for (int i = 0; i < ready_count; i++) {
            stream *s = found[i].owner;
            if (s->is_over) continue;
            if (found[i].can_write) send_rest(s);
            if (found[i].can_read) take_input(s);
        }
    }
}

int main(int argument_count, char **arguments) {
    if (argument_count != 7) {
        fprintf(stderr, "usage: stream_client PORT PATH BODY_FILE STREAMS RAMP_MS TIMEOUT_S\n");
        return 2;
    }
    int port = atoi(arguments[1]), count = atoi(arguments[4]);
    long ramp_ms = atol(arguments[5]), timeout_s = atol(arguments[6]);
    if (count < 1 || count > 4096 || ramp_ms < 0 || timeout_s < 1 || timeout_s > 600) {
        fprintf(stderr, "1 to 4096 streams, at most 600 seconds\n");
        return 2;
    }
    prepare_process();
    request = build_request(port, arguments[2], arguments[3]);
    events = loop_make();
    stream *streams = checked(calloc((size_t)count, sizeof *streams));
    ns_t start = now_ns();
    run(streams, count, port, ramp_ms * (SECOND / 1000), timeout_s * SECOND);
    double took = (double)(now_ns() - start) / (double)SECOND;
    double active = (double)(last_chunk - first_chunk) / (double)SECOND;
    sample_sort(&lags);
    sample_sort(&ttfts);
    printf("{\"finished\":%ld,\"failed\":%ld,\"unfinished\":%ld,\"chunks\":%lld,\"seconds\":%.3f,"
           "\"chunks_per_s\":%.1f,\"ttft_p50_us\":%.1f,\"ttft_p99_us\":%.1f,\"lag_p50_us\":%.1f,"
           "\"lag_p99_us\":%.1f,\"lag_max_us\":%.1f}\n",
           finished, failed, count - over, chunks, took, active > 0 ? (double)chunks / active : 0,
           quantile(&ttfts, 0.5), quantile(&ttfts, 0.99), quantile(&lags, 0.5),
           quantile(&lags, 0.99), quantile(&lags, 1));
    return 0;
}
