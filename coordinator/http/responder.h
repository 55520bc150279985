#ifndef CARAVAN_COORDINATOR_HTTP_RESPONDER_H_
#define CARAVAN_COORDINATOR_HTTP_RESPONDER_H_

// How a handler answers one request, at once or later, whole or as a stream.
//
//   handler called --Send--------------------------------> answered
//                  --StartStream--> Write* --Finish------> answered
//                  the client goes: on_gone, and all that follows is dropped

#include <functional>
#include <string>

#include "coordinator/http/http_message.h"

namespace caravan {

/// Thread-safe. May be kept as long as the HttpServer lives; dropping it unanswered answers 500,
/// or breaks off the stream.
class Responder {
 public:
  virtual ~Responder() = default;

  /// The whole answer. Nothing happens when one was begun already, or the client is gone.
  virtual void Send(HttpResponse response) = 0;

  /// Status and headers of an answer whose body (head.body comes first) is written piece by piece.
  virtual void StartStream(HttpResponse head) = 0;
  /// Never blocks: a writer that has much to say asks writable() first.
  virtual void Write(std::string bytes) = 0;
  virtual void Finish() = 0;

  /// Whether the client keeps up: false when too much waits to be written.
  virtual bool writable() const = 0;

  /// `on_gone` is called once when the client hangs up, or is given up, before the answer's end;
  /// `on_drained` each time that writable() becomes true again. Both by the connection's own
  /// thread of control, as is what Post runs, so that these never run at the same time. They are
  /// dropped when the answer ends. Set them before the handler returns.
  virtual void SetEvents(std::function<void()> on_gone, std::function<void()> on_drained) = 0;

  /// Runs `task` soon, on the connection's own thread of control; it must not block for long.
  virtual void Post(std::function<void()> task) = 0;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_HTTP_RESPONDER_H_
