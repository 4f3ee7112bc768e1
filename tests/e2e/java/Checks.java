import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.util.LinkedHashMap;
import java.util.Map;

/** Runs the checks of a client's program, one after the other, and prints a line of JSON for each. */
final class Checks {
  interface Body {
    Object run(String text) throws Exception;
  }

  private static final ObjectMapper JSON = new ObjectMapper();
  private static final JsonNode GIVEN = given();
  static final String URL = GIVEN.get("url").asText();
  static final String MODEL = GIVEN.get("model").asText();
  static final String KEY = GIVEN.get("key").asText();

  private static JsonNode given() {
    try {
      return JSON.readTree(System.in);
    } catch (Exception error) {
      throw new IllegalStateException(error);
    }
  }

  static void check(String name, Body body) throws Exception {
    Map<String, Object> line = new LinkedHashMap<>();
    line.put("check", name);
    try {
      line.put("value", body.run(GIVEN.get("texts").path(name).asText("Hello.")));
    } catch (Throwable error) {
      line.put("error", error.toString());
    }
    System.out.println(JSON.writeValueAsString(line));
  }

  static String weatherOf(String arguments) throws Exception {
    return JSON.readTree(arguments).get("city").asText() + ": sunny";
  }

  private Checks() {}
}
