/*
 * An upstream that speaks OpenAI's dialect and costs next to nothing, so that what is measured in
 * front of it is the gateway.
 *
 *   mock_upstream PORT        (0: any free port; the one taken is printed as `port N`)
 *
 * One thread, HTTP/1.1 with keep-alive, loopback only.
 *   POST anything             a chat answer of about 480 bytes, or a stream if the body says
 *                             `"stream": true`; it ends with `data: [DONE]`
 *   GET /set?c=C&d=D&t=T      shape of streams from now on: C chunks, D µs apart, the first after T µs
 *   GET /v1/models, others    what peers ask for when they look whether a worker is healthy
 *   GET /stats                counters: requests, streams, chunks, aborted
 *
 * Each chunk carries the moment it was made as `@<monotonic ns>@` in its content. A client on the
 * same machine so knows how long the chunk was under way, even behind a gateway that parses and
 * writes the events anew.
 */
#define _GNU_SOURCE
#include "loop.h"

typedef struct connection {
    int fd, wants_write;
    buffer in, out;
    size_t sent;
    int closes;        /* after this answer */
    int is_old;        /* HTTP/1.0: no chunked coding, the close ends the body */
    long left, total;  /* chunks of the running stream; `left` 0: none runs */
    ns_t next, delay;  /* when the next chunk is due */
    int place;         /* in the heap of due streams; -1: not there */
    char model[128];
} connection;

static loop events;
static long chunks_per_stream = 100;
static ns_t chunk_delay, first_delay;
static long long requests, streams, chunks, aborted;

static const char ANSWER[] =
    "{\"id\":\"chatcmpl-mock0000000000000000000000\",\"object\":\"chat.completion\","
    "\"created\":1760000000,\"model\":\"bench-model\",\"choices\":[{\"index\":0,\"message\":"
    "{\"role\":\"assistant\",\"content\":\"Hello! This is a mock answer of moderate length, so that "
    "the whole response body is about five hundred bytes long, as a short chat answer is.\","
    "\"refusal\":null},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":12,"
    "\"completion_tokens\":32,\"total_tokens\":44},\"system_fingerprint\":\"fp_mock\"}";
static const char MODELS[] =
    "{\"object\":\"list\",\"data\":[{\"id\":\"bench-model\",\"object\":\"model\","
    "\"created\":1760000000,\"owned_by\":\"mock\",\"max_model_len\":131072}]}";
static const char HEALTH[] = "{\"status\":\"ok\"}";

/* ---- streams that wait for their next chunk: a binary heap by due time ---- */

static connection **heap;
static int heap_size, heap_room;

static void heap_place(int at, connection *c) {
    heap[at] = c;
    c->place = at;
}

static void heap_rise(int at) {
    connection *c = heap[at];
    while (at > 0 && heap[(at - 1) / 2]->next > c->next) {
        heap_place(at, heap[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    heap_place(at, c);
}

static void heap_sink(int at) {
    connection *c = heap[at];
    for (int child; (child = 2 * at + 1) < heap_size; at = child) {
        if (child + 1 < heap_size && heap[child + 1]->next < heap[child]->next) child++;
        if (heap[child]->next >= c->next) break;
        heap_place(at, heap[child]);
    }
    heap_place(at, c);
}

static void heap_add(connection *c) {
    if (heap_size == heap_room) {
        heap_room = heap_room ? 2 * heap_room : 1024;
        heap = checked(realloc(heap, (size_t)heap_room * sizeof *heap));
    }
    heap_place(heap_size++, c);
    heap_rise(c->place);
}

static void heap_remove(connection *c) {
    int at = c->place;
    if (at < 0) return;
    c->place = -1;
    connection *last = heap[--heap_size];
    if (last == c) return;
    heap_place(at, last);
    heap_rise(at);
    heap_sink(last->place);
}

/* ---- writing ---- */

static void drop(connection *c) {
    if (c->left) aborted++;
    heap_remove(c);
    close(c->fd);
    free(c->in.data);
    free(c->out.data);
    free(c);
}

static void await_writable(connection *c, int wanted) {
    if (c->wants_write == wanted) return;
    c->wants_write = wanted;
    loop_change(&events, c->fd, c, wanted);
}

/* Send what is waiting. 0: the connection is no more (failed, or finished and to be closed). */
static int flush(connection *c) {
    while (c->sent < c->out.length) {
        ssize_t n = send(c->fd, c->out.data + c->sent, c->out.length - c->sent, 0);
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            await_writable(c, 1);
            return 1;
        }
        if (n < 0) {
            drop(c);
            return 0;
        }
        c->sent += (size_t)n;
    }
    c->sent = c->out.length = 0;
    await_writable(c, 0);
    if (c->closes && !c->left) {
        drop(c);
        return 0;
    }
    return 1;
}

static void answer(connection *c, const char *body, size_t length) {
    char head[160];
    int n = snprintf(head, sizeof head,
                     "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n%s\r\n",
                     length, c->closes ? "connection: close\r\n" : "");
    buffer_add(&c->out, head, (size_t)n);
    buffer_add(&c->out, body, length);
}

/* Queue one event, in chunked coding unless the client is too old for it. */
static void add_event(connection *c, const char *event, size_t length) {
    char size[24];
    int n = snprintf(size, sizeof size, "%zx\r\n", length);
    if (!c->is_old) buffer_add(&c->out, size, (size_t)n);
    buffer_add(&c->out, event, length);
    if (!c->is_old) buffer_add(&c->out, "\r\n", 2);
}

static void add_chunk(connection *c) {
    char delta[96] = "{}", event[768];
    int is_last = c->left == 1;
    if (!is_last)
        snprintf(delta, sizeof delta, "{%s\"content\":\"@%lld@\"}",
                 c->left == c->total ? "\"role\":\"assistant\"," : "", now_ns());
    int n = snprintf(event, sizeof event,
                     "data: {\"id\":\"chatcmpl-mock0000000000000000000000\",\"object\":"
                     "\"chat.completion.chunk\",\"created\":1760000000,\"model\":\"%s\",\"choices\":"
                     "[{\"index\":0,\"delta\":%s,\"logprobs\":null,\"finish_reason\":%s}]}\n\n",
                     c->model, delta, is_last ? "\"stop\"" : "null");
    add_event(c, event, (size_t)n);
    chunks++;
}

static void begin_stream(connection *c) {
    char head[192];
    int n = snprintf(head, sizeof head,
                     "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                     "cache-control: no-cache\r\n%s\r\n",
                     c->is_old ? "connection: close\r\n" : "transfer-encoding: chunked\r\n");
    buffer_add(&c->out, head, (size_t)n);
    streams++;
    c->left = c->total = chunks_per_stream;
    c->delay = chunk_delay;
    c->next = now_ns() + first_delay;
    heap_add(c);
}

/* Send the chunk that is due; the end follows the last one at once, as engines do it. */
static void advance_stream(connection *c) {
    heap_remove(c);
    add_chunk(c);
    c->left--;
    c->next += c->delay;
    if (c->left) {
        heap_add(c);
    } else {
        add_event(c, "data: [DONE]\n\n", 14);
        if (!c->is_old) buffer_add(&c->out, "0\r\n\r\n", 5);
    }
    flush(c);
}

/* ---- reading ---- */

typedef struct {
    const char *body;
    size_t head_length, body_length, length; /* `length`: with all framing */
} request;

/* Undo chunked coding in place. 0: not all of it is there yet. */
static int decode_chunks(connection *c, request *r) {
    char *end, *base = c->in.data;
    size_t read_at = r->head_length, write_at = r->head_length;
    for (;;) { /* first look whether it is complete: half a body must stay as it came */
        if (!(end = strstr(base + read_at, "\r\n"))) return 0;
        size_t size = strtoul(base + read_at, NULL, 16), start = (size_t)(end - base) + 2;
        if (c->in.length < start + size + 2) return 0;
        read_at = start + size + 2;
        if (!size) break;
    }
    r->length = read_at;
    read_at = r->head_length;
    for (;;) {
        end = strstr(base + read_at, "\r\n");
        size_t size = strtoul(base + read_at, NULL, 16), start = (size_t)(end - base) + 2;
        if (!size) break;
        memmove(base + write_at, base + start, size);
        write_at += size;
        read_at = start + size + 2;
    }
    r->body_length = write_at - r->head_length;
    return 1;
}

/* Find the first request in the input. 0: not all of it is there yet. */
static int next_request(connection *c, request *r) {
    char *base = c->in.data, *end, *field;
    if (!c->in.length || !(end = strstr(base, "\r\n\r\n"))) return 0;
    r->head_length = (size_t)(end - base) + 4;
    *end = 0; /* the head alone, for the searches */
    field = strcasestr(base, "\r\ncontent-length:");
    r->body_length = field ? strtoul(field + 17, NULL, 10) : 0;
    int is_chunked = !!strcasestr(base, "\r\ntransfer-encoding: chunked");
    c->is_old = !!strstr(base, " HTTP/1.0");
    c->closes = c->is_old || strcasestr(base, "\r\nconnection: close");
    *end = '\r';
    r->body = base + r->head_length;
    r->length = r->head_length + r->body_length;
    return is_chunked ? decode_chunks(c, r) : c->in.length >= r->length;
}

/* Return what follows `"name":` in the body, or NULL. Good enough for bodies that we wrote. */
static const char *member(const request *r, const char *name) {
    const char *found = memmem(r->body, r->body_length, name, strlen(name));
    if (!found) return NULL;
    found += strlen(name);
    return found + strspn(found, " :"); /* the input ends with a NUL */
}

static void serve_post(connection *c, const request *r) {
    const char *stream = member(r, "\"stream\""), *model = member(r, "\"model\"");
    size_t length = model && *model == '"' ? strcspn(model + 1, "\"") : 0;
    if (length && length < sizeof c->model) {
        memcpy(c->model, model + 1, length);
        c->model[length] = 0;
    } else {
        strcpy(c->model, "bench-model");
    }
    if (stream && !strncmp(stream, "true", 4))
        begin_stream(c);
    else
        answer(c, ANSWER, sizeof ANSWER - 1);
}

static void serve_get(connection *c) {
    const char *path = c->in.data + 4;
    long count, delay_us, first_us;
    char text[256];
    if (sscanf(path, "/set?c=%ld&d=%ld&t=%ld", &count, &delay_us, &first_us) == 3) {
        chunks_per_stream = count < 2 ? 2 : count;
        chunk_delay = delay_us * 1000LL;
        first_delay = first_us * 1000LL;
        answer(c, HEALTH, sizeof HEALTH - 1);
    } else if (!strncmp(path, "/stats", 6)) {
        int n = snprintf(text, sizeof text,
                         "{\"requests\":%lld,\"streams\":%lld,\"chunks\":%lld,\"aborted\":%lld}",
                         requests, streams, chunks, aborted);
        answer(c, text, (size_t)n);
    } else if (!strncmp(path, "/v1/models", 10)) {
        answer(c, MODELS, sizeof MODELS - 1);
    } else {
        answer(c, HEALTH, sizeof HEALTH - 1);
    }
}

/* Serve all requests that are there. 0: the connection is no more. */
static int serve_input(connection *c) {
    request r;
    while (!c->left && next_request(c, &r)) {
        requests++;
        if (!strncmp(c->in.data, "POST", 4))
            serve_post(c, &r);
        else
            serve_get(c);
        buffer_drop(&c->in, r.length);
    }
    return flush(c);
}

/* Do what a connection is ready for. 0: it is no more. */
static int handle(const ready *event) {
    connection *c = event->owner;
    if (event->can_write && !flush(c)) return 0;
    if (!event->can_read) return 1;
    if (buffer_receive(&c->in, c->fd)) return serve_input(c);
    drop(c);
    return 0;
}

static void accept_all(int listener) {
    int fd;
    while ((fd = accept(listener, NULL, NULL)) >= 0) {
        make_quick(fd);
        connection *c = checked(calloc(1, sizeof *c));
        c->fd = fd;
        c->place = -1;
        loop_add(&events, fd, c, 0);
    }
}

static int listen_on(int port) {
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    struct sockaddr_in a = loopback(port);
    socklen_t size = sizeof a;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&a, sizeof a) || listen(fd, 4096)) die("listen");
    fcntl(fd, F_SETFL, O_NONBLOCK);
    getsockname(fd, (struct sockaddr *)&a, &size);
    printf("port %d\n", ntohs(a.sin_port));
    fflush(stdout);
    return fd;
}

int main(int count, char **arguments) {
    ready found[MOST_EVENTS];
    if (count != 2) {
        fprintf(stderr, "usage: mock_upstream PORT\n");
        return 2;
    }
    prepare_process();
    int listener = listen_on(atoi(arguments[1]));
    events = loop_make();
    loop_add(&events, listener, &listener, 0);
    for (;;) {
        ns_t wait = heap_size ? heap[0]->next - now_ns() : SECOND;
        int ready_count = loop_wait(&events, found, wait);
        for (int i = 0; i < ready_count; i++) {
            if (found[i].owner == &listener) {
                accept_all(listener);
                continue;
            }
            if (handle(&found[i])) continue;
            /* kqueue reports reading and writing apart: forget what else came for the dead one */
            for (int j = i + 1; j < ready_count; j++)
                if (found[j].owner == found[i].owner) found[j].can_read = found[j].can_write = 0;
        }
        ns_t now = now_ns();
        for (int due = heap_size; due > 0 && heap_size && heap[0]->next <= now; due--)
            advance_stream(heap[0]);
    }
}
