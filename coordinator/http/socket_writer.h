#ifndef CARAVAN_COORDINATOR_HTTP_SOCKET_WRITER_H_
#define CARAVAN_COORDINATOR_HTTP_SOCKET_WRITER_H_

// Bytes on their way out to one client. Gives up on a client that takes none for a while.

#include <atomic>
#include <boost/asio/ip/tcp.hpp>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "coordinator/http/deadline.h"

namespace caravan {

/// Used on the socket's executor, a strand; unsent_bytes by anybody.
class SocketWriter {
 public:
  /// Both are called on the strand: when everything is written, and when the client cannot be
  /// written to (it hung up, or took nothing for `timeout`); never within Write.
  struct Events {
    std::function<void()> on_empty;
    std::function<void()> on_failed;
  };

  /// Borrows the socket.
  SocketWriter(boost::asio::ip::tcp::socket* socket, absl::Duration timeout, Events events);

  /// `owner` owns this object and the socket, and is kept alive meanwhile.
  void Write(const std::string& bytes, std::shared_ptr<void> owner);

  size_t unsent_bytes() const { return unsent_bytes_; }

  /// Called whenever bytes were written, before on_empty.
  void set_on_progress(std::function<void()> on_progress) { on_progress_ = std::move(on_progress); }

  /// Nothing is called any more, but what is under way still ends.
  void Close();

 private:
  void WriteSome(std::shared_ptr<void> owner);
  void OnWritten(size_t bytes, std::shared_ptr<void> owner);

  boost::asio::ip::tcp::socket* const socket_;
  const absl::Duration timeout_;
  const Events events_;
  std::function<void()> on_progress_;
  Deadline deadline_;
  std::string writing_;  // with the socket; not touched meanwhile
  size_t written_ = 0;   // of writing_
  std::string waiting_;  // behind it
  bool busy_ = false;
  bool closed_ = false;
  std::atomic<size_t> unsent_bytes_{0};
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_HTTP_SOCKET_WRITER_H_
