/*
 * A closed loop of keep-alive connections: each sends the same request again as soon as its answer
 * is complete.
 *
 *   load_client PORT PATH BODY_FILE CONNECTIONS SECONDS      (BENCH_KEY: the bearer key)
 *
 * Prints one JSON line: requests answered with 2xx, `non_2xx`, `errors` (connections that broke or
 * were not answered), seconds, and the latency of the 2xx ones in µs (p50, p90, p99, max).
 * After SECONDS no request is begun; those under way have 5 more seconds. An answer's body is
 * delimited by content-length or chunked coding; its bytes are skipped, not looked at.
 */
#define _GNU_SOURCE
#include "loop.h"

#define GRACE (5 * SECOND)
#define RECONNECT_PAUSE (SECOND / 100)

typedef struct {
    int fd, wants_write, is_busy;
    size_t sent;
    buffer in;
    ns_t began, not_before; /* `not_before`: when a broken connection may try again */
} client;

static loop events;
static buffer request;
static samples latencies;
static long long answered, non_2xx, errors;
static int port, busy_count;

static void stop(client *c) {
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
    c->in.length = 0;
    if (c->is_busy) busy_count--;
    c->is_busy = 0;
}

static void fail(client *c) {
    errors++;
    stop(c);
    c->not_before = now_ns() + RECONNECT_PAUSE; /* a gateway that is down is not hammered */
}

static void send_rest(client *c) {
    while (c->sent < request.length) {
        ssize_t n = send(c->fd, request.data + c->sent, request.length - c->sent, 0);
        if (n >= 0) {
            c->sent += (size_t)n;
            continue;
        }
        if (errno != EAGAIN && errno != EWOULDBLOCK && errno != ENOTCONN) return; /* reading shows it */
        if (!c->wants_write) loop_change(&events, c->fd, c, c->wants_write = 1);
        return;
    }
    if (c->wants_write) loop_change(&events, c->fd, c, c->wants_write = 0);
}

static void begin(client *c) {
    if (c->fd < 0) {
        if ((c->fd = connect_loopback(port)) < 0) {
            fail(c);
            return;
        }
        c->wants_write = 1;
        loop_add(&events, c->fd, c, 1);
    }
    c->sent = 0;
    c->is_busy = 1;
    busy_count++;
    c->began = now_ns();
    if (!c->wants_write) send_rest(c); /* else as soon as it is connected */
}

/* Return where the chunked body that begins at `at` ends, 0 if it is not complete. */
static size_t chunked_end(const buffer *in, size_t at) {
    while (at < in->length) {
        char *line_end = strstr(in->data + at, "\r\n");
        if (!line_end) return 0;
        size_t size = strtoul(in->data + at, NULL, 16);
        at = (size_t)(line_end - in->data) + 2 + size + 2;
        if (!size) return at <= in->length ? at : 0;
    }
    return 0;
}

/* Return where the first answer in the input ends, 0 if it is not complete. */
static size_t answer_end(buffer *in, int *status, int *closes) {
    char *end = in->length ? strstr(in->data, "\r\n\r\n") : NULL;
    if (!end) return 0;
    size_t head = (size_t)(end - in->data) + 4;
    *end = 0; /* the head alone, for the searches */
    *status = head > 12 ? atoi(in->data + 9) : 0;
    *closes = !!strcasestr(in->data, "\r\nconnection: close");
    char *length = strcasestr(in->data, "\r\ncontent-length:");
    int is_chunked = !!strcasestr(in->data, "\r\ntransfer-encoding: chunked");
    *end = '\r';
    if (is_chunked) return chunked_end(in, head);
    size_t total = head + (length ? strtoul(length + 17, NULL, 10) : 0);
    return in->length >= total ? total : 0;
}

static void take_answers(client *c, int may_go_on) {
    int status, closes, is_open = buffer_receive(&c->in, c->fd);
    size_t end = c->is_busy ? answer_end(&c->in, &status, &closes) : 0;
    if (end) {
        ns_t now = now_ns();
        if (status >= 200 && status < 300) {
            answered++;
            sample_add(&latencies, now - c->began);
        } else {
            non_2xx++;
        }
        buffer_drop(&c->in, end);
        c->is_busy = 0;
        busy_count--;
        if (closes || !is_open) stop(c);
        if (may_go_on) begin(c);
    } else if (!is_open && c->is_busy) {
        fail(c);
    } else if (!is_open) {
        stop(c);
    }
}

static void run(client *clients, int count, ns_t end) {
    ready found[MOST_EVENTS];
    for (;;) {
        ns_t now = now_ns();
        int may_go_on = now < end;
        if (now >= end + GRACE || (!may_go_on && !busy_count)) return;
        for (int i = 0; may_go_on && busy_count < count && i < count; i++)
            if (!clients[i].is_busy && now >= clients[i].not_before) begin(&clients[i]);
        int ready_count = loop_wait(&events, found, RECONNECT_PAUSE);
        for (int i = 0; i < ready_count; i++) {
            client *c = found[i].owner;
            if (c->fd < 0) continue;
            if (found[i].can_write) send_rest(c);
            if (found[i].can_read) take_answers(c, now_ns() < end);
        }
    }
}

int main(int count, char **arguments) {
    if (count != 6) {
        fprintf(stderr, "usage: load_client PORT PATH BODY_FILE CONNECTIONS SECONDS\n");
        return 2;
    }
    int connections = atoi(arguments[4]);
    double seconds = atof(arguments[5]);
    if (connections < 1 || connections > 4096 || seconds <= 0 || seconds > 600) {
        fprintf(stderr, "1 to 4096 connections, at most 600 seconds\n");
        return 2;
    }
    prepare_process();
    port = atoi(arguments[1]);
    request = build_request(port, arguments[2], arguments[3]);
    events = loop_make();
    client *clients = checked(calloc((size_t)connections, sizeof *clients));
    for (int i = 0; i < connections; i++) clients[i].fd = -1;
    ns_t start = now_ns();
    run(clients, connections, start + (ns_t)(seconds * (double)SECOND));
    double took = (double)(now_ns() - start) / (double)SECOND;
    sample_sort(&latencies);
    printf("{\"requests\":%lld,\"non_2xx\":%lld,\"errors\":%lld,\"seconds\":%.3f,\"p50_us\":%.1f,"
           "\"p90_us\":%.1f,\"p99_us\":%.1f,\"max_us\":%.1f}\n",
           answered, non_2xx, errors + busy_count, took, quantile(&latencies, 0.5),
           quantile(&latencies, 0.9), quantile(&latencies, 0.99), quantile(&latencies, 1));
    return 0;
}
